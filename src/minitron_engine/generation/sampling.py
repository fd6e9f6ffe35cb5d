"""How tokens are chosen: llama.cpp's samplers, with the order and meaning of its own tools.

Every field of `SamplingSettings` is one row of a registry, `SAMPLING_OPTIONS`: the command line,
the server's requests, the defaults that a model recommends and the chain of samplers all read it.
To add an option, add a row. A new sampler also needs a line with its constructor in sampler.py.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Protocol

from minitron_core.errors import Damaged, Usage

SAMPLERS = (
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
)
# at the end of the chain, instead of the draw
_ADAPTIVE = "adaptive_p"
_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}
_BREAKERS = ("\n", ":", '"', "*")
_LONGEST_WINDOW = 1 << 20
_HUGE = 1e6


@dataclass(frozen=True)
class SamplingOption:
    """A row of the registry: one setting as all users of it need it.

    low, high: the least and the greatest number allowed. flags: names on the command line, if not
    only --name; parse: makes the value from its text there. request: its name in a request to
    the server, as llama-server has it. gguf: its key below general.sampling in a model's metadata.
    sampler: the part of the chain that takes it, with the part's other rows in their order here.
    moves: away from its default it can make another token the likeliest. text: the command line
    takes a file with the value.
    """

    name: str
    type: type
    default: Any
    help: str
    low: float = 0
    high: float = _HUGE
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    parse: Callable[[Any], Any] | None = None
    request: str = ""
    gguf: str = ""
    sampler: str = ""
    moves: bool = False
    text: bool = False

    @property
    def numeric(self) -> bool:
        """Whether the value is one number."""
        return self.type in (int, float)

    @property
    def many(self) -> bool:
        """Whether it is given several times, once for each element of the value."""
        return self.type is tuple and self.name != "samplers"

    @property
    def shown_default(self) -> str:
        """The default as help shows it, empty where there is nothing to show."""
        if self.numeric and self.default is not None:
            return f"{self.default:g}"
        return ";".join(self.default) if self.default is SAMPLERS else ""


def _row(default: Any, help: str, **more: Any) -> Any:
    metadata = {"help": help, "type": type(default), **more}
    return field(default=default, metadata=metadata)


def parse_samplers(text: str) -> tuple[str, ...]:
    """The samplers of "top_k;temperature"."""
    return tuple(filter(None, text.split(";")))


def _parse_bias(texts: Sequence[str]) -> tuple[tuple[int, float], ...]:
    biases = []
    for text in texts:
        found = re.fullmatch(r"(\d{1,9})([+-](?:\d+\.?\d*|\.\d+|inf))", text)
        if not found:
            raise Usage(f"{text!r} is not a token's number, a sign and a bias, as 15043+1")
        biases.append((int(found[1]), float(found[2])))
    return tuple(biases)


def _parse_breakers(texts: Sequence[str]) -> tuple[str, ...]:
    return () if "none" in texts else tuple(texts)


@dataclass(frozen=True)
class SamplingSettings:
    """Every setting of llama.cpp's samplers with its default there; sizes of windows in tokens.

    A temperature of 0 always takes the likeliest token. Mirostat (1 or 2) replaces all samplers but
    the temperature; `adaptive_p` among the samplers replaces the draw at their end. `logit_bias` is
    added to the logits of tokens. Raises Usage for a value that llama.cpp cannot take.
    """

    seed: int = field(
        metadata={
            "type": int,
            "help": "Random when not given; shown.",
            "high": 2**32 - 2,
            "flags": ("--seed", "-s"),
        }
    )
    temperature: float = _row(
        0.8, "0 is greedy.", flags=("--temp", "--temperature"), gguf="temp", sampler="temperature"
    )
    dynatemp_range: float = _row(
        0.0, "Temperature ± this, by entropy; 0 is off.", sampler="temperature"
    )
    dynatemp_exp: float = _row(
        1.0, "Entropy to temperature.", request="dynatemp_exponent", sampler="temperature"
    )
    samplers: tuple[str, ...] = _row(
        SAMPLERS,
        "Which samplers, in which order.",
        metavar="NAME;…",
        parse=parse_samplers,
        gguf="sequence",
    )
    top_k: int = _row(
        40,
        "Only the likeliest k; 0 for all.",
        low=-1,
        high=2**31 - 1,
        gguf="top_k",
        sampler="top_k",
    )
    top_p: float = _row(0.95, "Nucleus; 1 for all.", high=1, gguf="top_p", sampler="top_p")
    min_p: float = _row(
        0.05, "Floor, relative to the likeliest.", high=1, gguf="min_p", sampler="min_p"
    )
    typical: float = _row(
        1.0,
        "Locally typical; 1 is off.",
        high=1,
        flags=("--typical", "--typical-p"),
        request="typical_p",
        sampler="typ_p",
        moves=True,
    )
    top_n_sigma: float = _row(
        -1.0,
        "Logits within n sigmas; -1 is off.",
        low=-1,
        flags=("--top-n-sigma", "--top-nsigma"),
        sampler="top_n_sigma",
    )
    xtc_probability: float = _row(
        0.0,
        "How often the top is excluded.",
        high=1,
        gguf="xtc_probability",
        sampler="xtc",
        moves=True,
    )
    xtc_threshold: float = _row(
        0.1, "What counts as the top.", high=1, gguf="xtc_threshold", sampler="xtc"
    )
    repeat_last_n: int = _row(
        64,
        "Tokens that the penalties look at.",
        high=_LONGEST_WINDOW,
        gguf="penalty_last_n",
        sampler="penalties",
    )
    repeat_penalty: float = _row(
        1.0, "1 is off.", low=1e-6, gguf="penalty_repeat", sampler="penalties", moves=True
    )
    frequency_penalty: float = _row(
        0.0, "0 is off.", low=-100, high=100, sampler="penalties", moves=True
    )
    presence_penalty: float = _row(
        0.0, "0 is off.", low=-100, high=100, sampler="penalties", moves=True
    )
    dry_multiplier: float = _row(
        0.0, "Penalty on repeated sequences; 0 is off.", low=-_HUGE, sampler="dry", moves=True
    )
    dry_base: float = _row(1.75, "Growth with length.", low=1, sampler="dry")
    dry_allowed_length: int = _row(2, "Free repetitions.", high=_LONGEST_WINDOW, sampler="dry")
    dry_penalty_last_n: int = _row(64, "0 is off.", high=_LONGEST_WINDOW, sampler="dry")
    dry_sequence_breakers: tuple[str, ...] = _row(
        _BREAKERS,
        'Instead of newline : " *; none for no breakers.',
        flags=("--dry-sequence-breaker",),
        metavar="TEXT",
        parse=_parse_breakers,
        sampler="dry",
    )
    mirostat: int = _row(0, "1 or 2, instead of the samplers.", high=2, gguf="mirostat", moves=True)
    mirostat_lr: float = _row(
        0.1, "Mirostat's learning rate.", request="mirostat_eta", gguf="mirostat_eta"
    )
    mirostat_ent: float = _row(
        5.0, "Mirostat's target entropy.", request="mirostat_tau", gguf="mirostat_tau"
    )
    adaptive_target: float = _row(
        -1.0, "Probability that adaptive_p aims at.", low=-1, high=1, sampler=_ADAPTIVE
    )
    adaptive_decay: float = _row(0.9, "How slowly it adapts.", high=0.99, sampler=_ADAPTIVE)
    logit_bias: tuple[tuple[int, float], ...] = _row(
        (),
        "As 15043+1 or 15043-inf.",
        flags=("--logit-bias", "-l"),
        metavar="ID±BIAS",
        parse=_parse_bias,
        moves=True,
    )
    ignore_eos: bool = _row(False, "Ignore end-of-generation tokens.", moves=True)
    grammar: str = _row("", "A GBNF grammar to follow.", metavar="FILE", text=True, moves=True)
    json_schema: str = _row("", "A JSON schema to follow.", metavar="FILE", text=True, moves=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samplers", tuple(map(sampler_name, self.samplers)))
        for row in SAMPLING_OPTIONS:
            value = getattr(self, row.name)
            if row.numeric and not row.low <= value <= row.high:
                raise Usage(f"{row.name} must be from {row.low:g} to {row.high:g}, not {value}")
        if self.grammar and self.json_schema:
            raise Usage("a grammar and a JSON schema exclude each other")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken, nothing is drawn."""
        return not self.mirostat and (
            ("temperature" in self.samplers and self.temperature <= 0)
            or ("top_k" in self.samplers and self.top_k == 1)
        )

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is so by the model's own logits: nothing changes them."""
        same = all(getattr(self, row.name) == row.default for row in SAMPLING_OPTIONS if row.moves)
        return same and _ADAPTIVE not in self.samplers

    def arguments(self, sampler: str) -> list[Any]:
        """The settings that a part of the chain takes, in the order of llama.cpp's constructor."""
        return [getattr(self, row.name) for row in SAMPLING_OPTIONS if row.sampler == sampler]


def sampling_options(settings: type) -> tuple[SamplingOption, ...]:
    """The rows of a class of settings, in the order of its fields."""
    return tuple(
        SamplingOption(
            **{
                "name": each.name,
                "default": None if each.default is MISSING else each.default,
                "request": each.name,
                **each.metadata,
            }
        )
        for each in fields(settings)
    )


SAMPLING_OPTIONS = sampling_options(SamplingSettings)


def sampler_name(text: str) -> str:
    """The canonical name of a sampler: top-k, topk and TOP_K are top_k. Raises Usage."""
    names = {name.replace("_", ""): name for name in (*SAMPLERS, _ADAPTIVE)} | _ALIASES
    found = names.get(text.strip().lower().replace("_", "").replace("-", ""))
    if found is None:
        raise Usage(
            f"{text!r} is not a sampler", f"the samplers are {', '.join((*SAMPLERS, _ADAPTIVE))}"
        )
    return found


class HasMetadata(Protocol):
    """A model, as far as it recommends settings."""

    def metadata(self, key: str) -> str:
        """A value as text, empty where the key is missing."""


def settings_for(model: HasMetadata, given: Mapping[str, Any]) -> SamplingSettings:
    """Settings where what is not given is what the model's metadata recommends, or the default.

    llama.cpp's tools read the same keys (general.sampling.*). Raises Damaged for a value there that
    is not a number, Usage as SamplingSettings does.
    """
    recommended: dict[str, Any] = {}
    for row in SAMPLING_OPTIONS:
        text = model.metadata(f"general.sampling.{row.gguf}") if row.gguf else ""
        if not text or row.name in given:
            continue
        try:
            recommended[row.name] = (row.parse or row.type)(text)
        except ValueError:
            raise Damaged(f"the model recommends a {row.name} of {text!r}") from None
    return SamplingSettings(**(recommended | dict(given)))

"""How tokens are chosen: llama.cpp's samplers, with the order and meaning of its own tools.

Every field of `SamplingSettings` is one row of a registry, `SAMPLING_OPTIONS`: the command line,
the server's requests, the defaults that a model recommends and the chain of samplers all read it.
To add an option, add a row. A new sampler also needs a line with its constructor in sampler.py.
"""

import os
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from minitron_core.errors import Damaged, Usage
from minitron_core.quoting import quoted
from minitron_engine.generation.sampling_options import option_row, sampling_options

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


def parse_samplers(text: str) -> tuple[str, ...]:
    """The samplers of "top_k;temperature"."""
    return tuple(filter(None, text.split(";")))


def _parse_bias(texts: Sequence[str]) -> tuple[tuple[int, float], ...]:
    biases = []
    for text in texts:
        found = re.fullmatch(r"(\d{1,9})([+-](?:\d+\.?\d*|\.\d+|inf))", text)
        if not found:
            raise Usage(f"{quoted(text)} is not a token's number, a sign and a bias, as 15043+1")
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
            "help": "Seed of the random numbers; random and shown if not given.",
            "high": 2**32 - 2,
            "flags": ("--seed", "-s"),
        }
    )
    temperature: float = option_row(
        0.8,
        "Temperature; 0 is greedy.",
        flags=("--temp", "--temperature"),
        gguf="temp",
        sampler="temperature",
    )
    dynatemp_range: float = option_row(
        0.0, "Vary the temperature by ± this with the entropy; 0 is off.", sampler="temperature"
    )
    dynatemp_exp: float = option_row(
        1.0,
        "Exponent of the entropy in the temperature.",
        request="dynatemp_exponent",
        sampler="temperature",
    )
    samplers: tuple[str, ...] = option_row(
        SAMPLERS,
        "The samplers in their order.",
        metavar="NAME;…",
        parse=parse_samplers,
        gguf="sequence",
    )
    top_k: int = option_row(
        40,
        "Keep the k likeliest tokens; 0 keeps all.",
        low=-1,
        high=2**31 - 1,
        gguf="top_k",
        sampler="top_k",
    )
    top_p: float = option_row(
        0.95,
        "Nucleus: keep this much of the probability; 1 keeps all.",
        high=1,
        gguf="top_p",
        sampler="top_p",
    )
    min_p: float = option_row(
        0.05,
        "Least probability, relative to the likeliest token's.",
        high=1,
        gguf="min_p",
        sampler="min_p",
    )
    typical: float = option_row(
        1.0,
        "Locally typical sampling; 1 is off.",
        high=1,
        flags=("--typical", "--typical-p"),
        request="typical_p",
        sampler="typ_p",
        moves=True,
    )
    top_n_sigma: float = option_row(
        -1.0,
        "Keep logits within n sigmas of the largest; -1 is off.",
        low=-1,
        flags=("--top-n-sigma", "--top-nsigma"),
        sampler="top_n_sigma",
    )
    xtc_probability: float = option_row(
        0.0,
        "XTC: probability of excluding top tokens; 0 is off.",
        high=1,
        gguf="xtc_probability",
        sampler="xtc",
        moves=True,
    )
    xtc_threshold: float = option_row(
        0.1, "XTC: least probability of a top token.", high=1, gguf="xtc_threshold", sampler="xtc"
    )
    repeat_last_n: int = option_row(
        64,
        "Tokens that the penalties look back at.",
        high=_LONGEST_WINDOW,
        gguf="penalty_last_n",
        sampler="penalties",
    )
    repeat_penalty: float = option_row(
        1.0,
        "Penalty on repeated tokens; 1 is off.",
        low=1e-6,
        gguf="penalty_repeat",
        sampler="penalties",
        moves=True,
    )
    frequency_penalty: float = option_row(
        0.0,
        "Penalty for each repetition; 0 is off.",
        low=-100,
        high=100,
        sampler="penalties",
        moves=True,
    )
    presence_penalty: float = option_row(
        0.0,
        "Penalty on any repetition; 0 is off.",
        low=-100,
        high=100,
        sampler="penalties",
        moves=True,
    )
    dry_multiplier: float = option_row(
        0.0, "DRY: penalty on repeated sequences; 0 is off.", low=-_HUGE, sampler="dry", moves=True
    )
    dry_base: float = option_row(
        1.75, "DRY: growth of the penalty with length.", low=1, sampler="dry"
    )
    dry_allowed_length: int = option_row(
        2, "DRY: longest repetition without penalty.", high=_LONGEST_WINDOW, sampler="dry"
    )
    dry_penalty_last_n: int = option_row(
        64, "DRY: tokens that it looks back at; 0 is off.", high=_LONGEST_WINDOW, sampler="dry"
    )
    dry_sequence_breakers: tuple[str, ...] = option_row(
        _BREAKERS,
        'DRY: what ends a sequence, not newline : " *; none for nothing.',
        flags=("--dry-sequence-breaker",),
        metavar="TEXT",
        parse=_parse_breakers,
        sampler="dry",
    )
    mirostat: int = option_row(
        0, "Mirostat 1 or 2 instead of the samplers; 0 is off.", high=2, gguf="mirostat", moves=True
    )
    mirostat_lr: float = option_row(
        0.1, "Mirostat's learning rate.", request="mirostat_eta", gguf="mirostat_eta"
    )
    mirostat_ent: float = option_row(
        5.0, "Mirostat's target entropy.", request="mirostat_tau", gguf="mirostat_tau"
    )
    adaptive_target: float = option_row(
        -1.0, "Probability that adaptive_p aims at; -1 is off.", low=-1, high=1, sampler=_ADAPTIVE
    )
    adaptive_decay: float = option_row(
        0.9, "How slowly adaptive_p adapts.", high=0.99, sampler=_ADAPTIVE
    )
    logit_bias: tuple[tuple[int, float], ...] = option_row(
        (),
        "Add a bias to a token, as 15043+1 or 15043-inf.",
        flags=("--logit-bias", "-l"),
        metavar="ID±BIAS",
        parse=_parse_bias,
        moves=True,
    )
    ignore_eos: bool = option_row(False, "Ignore end-of-generation tokens.", moves=True)
    grammar: str = option_row(
        "", "A GBNF grammar to follow.", metavar="FILE", text=True, moves=True
    )
    json_schema: str = option_row(
        "", "A JSON schema to follow.", metavar="FILE", text=True, moves=True
    )

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
            ("temperature" in self.samplers and self.temperature <= 0 and self.dynatemp_range <= 0)
            or ("top_k" in self.samplers and self.top_k == 1)
        )

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is so by the model's own logits: nothing changes them."""
        return self._is_plain()

    @property
    def takes_likeliest(self) -> bool:
        """Whether the likeliest token by the model's own logits is taken, if it is allowed."""
        return self.greedy and self._is_plain({"ignore_eos"})

    def _is_plain(self, but: Set[str] = frozenset()) -> bool:
        moving = (row for row in SAMPLING_OPTIONS if row.moves and row.name not in but)
        same = all(getattr(self, row.name) == row.default for row in moving)
        return same and _ADAPTIVE not in self.samplers

    def arguments(self, sampler: str) -> list[Any]:
        """The settings that a part of the chain takes, in the order of llama.cpp's constructor."""
        return [getattr(self, row.name) for row in SAMPLING_OPTIONS if row.sampler == sampler]


SAMPLING_OPTIONS = sampling_options(SamplingSettings)


def sampler_name(text: str) -> str:
    """The canonical name of a sampler: top-k, topk and TOP_K are top_k. Raises Usage."""
    names = {name.replace("_", ""): name for name in (*SAMPLERS, _ADAPTIVE)} | _ALIASES
    found = names.get(text.strip().lower().replace("_", "").replace("-", ""))
    if found is None:
        raise Usage(
            f"{quoted(text)} is not a sampler",
            f"the samplers are {', '.join((*SAMPLERS, _ADAPTIVE))}",
        )
    return found


def random_seed() -> int:
    """Any seed but the one that llama.cpp takes for "choose one"."""
    return int.from_bytes(os.urandom(8)) % (2**32 - 1)


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
            raise Damaged(f"the model recommends a {row.name} of {quoted(text)}") from None
    return SamplingSettings(**(recommended | dict(given)))

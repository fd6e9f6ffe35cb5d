"""How tokens are chosen: llama.cpp's samplers, with the order and meaning of its own tools."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minitron_core.errors import Damaged, Usage
from minitron_engine.llama.model import Model

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
BREAKERS = ("\n", ":", '"', "*")
# what a model's metadata may recommend (general.sampling.*), by the name of the setting
_RECOMMENDED = {
    "samplers": "sequence",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "xtc_probability": "xtc_probability",
    "xtc_threshold": "xtc_threshold",
    "temperature": "temp",
    "repeat_last_n": "penalty_last_n",
    "repeat_penalty": "penalty_repeat",
    "mirostat": "mirostat",
    "mirostat_ent": "mirostat_tau",
    "mirostat_lr": "mirostat_eta",
}
_ALIASES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p"}
# settings that, away from their defaults, can make another token the likeliest
_CHANGES = (
    *("repeat_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier"),
    *("typical", "xtc_probability", "mirostat", "logit_bias", "ignore_eos", "grammar"),
)
_LONGEST_WINDOW = 1 << 20


@dataclass(frozen=True)
class SamplingSettings:
    """Every knob of llama.cpp's samplers with its default there; sizes of windows in tokens.

    A temperature of 0 always takes the likeliest token. Mirostat (1 or 2) replaces all samplers but
    the temperature; `adaptive_p` among the samplers replaces the draw at their end. `logit_bias` is
    added to the logits of tokens. Raises Usage for a value that llama.cpp cannot take.
    """

    seed: int
    samplers: tuple[str, ...] = SAMPLERS
    temperature: float = 0.8
    dynatemp_range: float = 0.0
    dynatemp_exp: float = 1.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: tuple[str, ...] = BREAKERS
    mirostat: int = 0
    mirostat_lr: float = 0.1
    mirostat_ent: float = 5.0
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    grammar: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "samplers", tuple(map(sampler_name, self.samplers)))
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise Usage(f"{name} must be a finite number, not {value}")
        if not 1e-30 < self.repeat_penalty < 1e30:
            raise Usage("repeat_penalty must be greater than 0")
        for name in ("repeat_last_n", "dry_penalty_last_n"):
            if not 0 <= getattr(self, name) <= _LONGEST_WINDOW:
                raise Usage(f"{name} must be between 0 and {_LONGEST_WINDOW}")
        if self.mirostat not in (0, 1, 2):
            raise Usage("mirostat is 0 (off), 1 or 2")

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
        off = SamplingSettings(seed=0)
        same = all(getattr(self, name) == getattr(off, name) for name in _CHANGES)
        return same and "adaptive_p" not in self.samplers


def sampler_name(text: str) -> str:
    """The canonical name of a sampler: top-k, topk and TOP_K are top_k. Raises Usage."""
    names = {name.replace("_", ""): name for name in (*SAMPLERS, "adaptive_p")} | _ALIASES
    found = names.get(text.strip().lower().replace("_", "").replace("-", ""))
    if found is None:
        raise Usage(
            f"{text!r} is no sampler", f"the samplers are {', '.join((*SAMPLERS, 'adaptive_p'))}"
        )
    return found


def settings_for(model: Model, given: Mapping[str, Any]) -> SamplingSettings:
    """Settings where what is not given is what the model's metadata recommends, or the default.

    llama.cpp's tools read the same keys (general.sampling.*).
    """
    recommended: dict[str, Any] = {}
    for name, key in _RECOMMENDED.items():
        text = model.metadata(f"general.sampling.{key}")
        if not text or name in given:
            continue
        if name == "samplers":
            recommended[name] = tuple(text.split(";"))
            continue
        kind = type(getattr(SamplingSettings, name))
        try:
            recommended[name] = kind(text)
        except ValueError:
            raise Damaged(f"the model recommends a {name} of {text!r}") from None
    return SamplingSettings(**(recommended | dict(given)))

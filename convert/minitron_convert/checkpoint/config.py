"""A checkpoint's config.json: typed look-ups, the model's dimensions, and its rotary positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minitron_convert.checkpoint.tensor_ref import TensorRef
from minitron_core.errors import Damaged, Unsupported
from minitron_core.quoting import quoted


@dataclass(frozen=True)
class Config:
    """Look-ups by any of several names, the first that is there and not null."""

    values: Mapping[str, Any]
    where: str = "config.json"

    def find(self, *keys: str) -> Any:
        """The value under the first of `keys` that has one, else None."""
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    def whole(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`. Damaged if it is missing or something else."""
        value = self.find(*keys)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            kind = "positive whole number" if least == 1 else f"whole number of at least {least}"
            raise Damaged(f"{self.where} gives {quoted(value)} for {keys[0]}; it must be a {kind}")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A positive number. Damaged if it is missing or something else."""
        value = self.find(*keys)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e38:
            raise Damaged(f"{self.where} gives {quoted(value)} for {keys[0]}; it must be a number")
        return value

    def section(self, *keys: str) -> Config:
        """An object within the config; empty if there is none."""
        value = self.find(*keys)
        if value is not None and not isinstance(value, dict):
            raise Damaged(f"{self.where} gives {quoted(value)} for {keys[0]}; it must be an object")
        return Config(value or {}, f"{self.where}, {keys[0]}")


@dataclass(frozen=True)
class Dimensions:
    """The model's sizes, in heads, elements and positions."""

    layers: int
    context: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


def read_dimensions(config: Config, tensors: Mapping[str, TensorRef]) -> Dimensions:
    """The sizes from the config; a head's, where the config is silent, from the projection."""
    hidden = config.whole("hidden_size")
    heads = config.whole("num_attention_heads")
    # kv_channels is what NeMo exports call head_dim.
    head_dim = config.whole("head_dim", "kv_channels", default=max(1, hidden // heads))
    query = tensors.get("model.layers.0.self_attn.q_proj.weight")
    if query is not None and query.shape[0] % heads == 0:
        head_dim = query.shape[0] // heads
    return Dimensions(
        layers=config.whole("num_hidden_layers"),
        context=config.whole("max_position_embeddings"),
        hidden=hidden,
        ffn=config.whole("intermediate_size", least=0),
        heads=heads,
        kv_heads=config.whole("num_key_value_heads", default=heads),
        head_dim=head_dim,
        vocab=config.whole("vocab_size"),
    )


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the kind of scaling, its settings, and the base of the frequencies.

    `local_theta` is the base of layers with a sliding window, where they have their own.
    """

    kind: str
    theta: float | None
    local_theta: float | None
    values: Config


def read_rope(config: Config, known: Sequence[str]) -> Rope:
    """The rotary settings under their old names and new. Unsupported for unknown kinds."""
    values = config.section("rope_parameters", "rope_scaling")
    local = config.find("rope_local_base_freq")
    if "full_attention" in values.values:
        # transformers 5 gives one object per kind of layer
        local = values.section("sliding_attention").find("rope_theta")
        values = values.section("full_attention")
    kind = values.find("rope_type", "type") or "default"
    kind = kind.lower() if isinstance(kind, str) else kind
    if kind not in known:
        raise Unsupported(
            f"{values.where} asks for {quoted(kind)} scaling of positions",
            f"known kinds are {', '.join(known)}",
        )
    if kind in ("linear", "yarn"):
        values.number("factor")
    theta = values.find("rope_theta") or config.find("rope_theta", "rotary_emb_base")
    bases = Config({"theta": theta, "local_theta": local}, values.where)
    return Rope(
        kind,
        None if theta is None else bases.number("theta"),
        None if local is None else bases.number("local_theta"),
        values,
    )

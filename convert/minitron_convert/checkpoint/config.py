"""A checkpoint's config.json: typed look-ups, the model's dimensions, and its rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minitron_convert.checkpoint.tensor_ref import TensorRef
from minitron_core.errors import Damaged, Unsupported

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp


@dataclass(frozen=True)
class Config:
    """Look-ups by any of several names, the first that is there and not null."""

    values: Mapping[str, Any]
    where: str = "config.json"

    def find(self, *keys: str) -> Any:
        """The value under the first of `keys` that has one, else None."""
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    def whole(self, *keys: str, default: int | None = None) -> int:
        """A positive whole number. Damaged if it is missing or something else."""
        value = self.find(*keys)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise Damaged(
                f"{self.where} gives {value!r} for {keys[0]}; it must be a positive whole number."
            )
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A positive number. Damaged if it is missing or something else."""
        value = self.find(*keys)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e38:
            raise Damaged(f"{self.where} gives {value!r} for {keys[0]}; it must be a number.")
        return value

    def section(self, *keys: str) -> Config:
        """An object within the config; empty if there is none."""
        value = self.find(*keys)
        if value is not None and not isinstance(value, dict):
            raise Damaged(f"{self.where} gives {value!r} for {keys[0]}; it must be an object.")
        return Config(value or {}, f"{self.where}, {keys[0]}")


@dataclass(frozen=True)
class Defaults:
    """What transformers assumes where a config is silent, per family."""

    context: int
    norm_epsilon: float
    kv_heads: int | None = None


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

    @property
    def attention(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim


def read_dimensions(
    config: Config, tensors: Mapping[str, TensorRef], defaults: Defaults
) -> Dimensions:
    """The sizes from the config; of a head, from the query projection where there is one."""
    hidden = config.whole("hidden_size")
    heads = config.whole("num_attention_heads")
    # kv_channels is what NeMo exports call head_dim.
    head_dim = config.whole("head_dim", "kv_channels", default=max(1, hidden // heads))
    query = tensors.get("model.layers.0.self_attn.q_proj.weight")
    if query is not None and query.shape[0] % heads == 0:
        head_dim = query.shape[0] // heads
    layers = config.whole("num_hidden_layers")
    if layers > MAX_LAYERS:
        raise Unsupported(f"{config.where} gives {layers} layers; llama.cpp takes {MAX_LAYERS}.")
    return Dimensions(
        layers=layers,
        context=config.whole("max_position_embeddings", default=defaults.context),
        hidden=hidden,
        ffn=config.whole("intermediate_size"),
        heads=heads,
        kv_heads=config.whole("num_key_value_heads", default=defaults.kv_heads or heads),
        head_dim=head_dim,
        vocab=config.whole("vocab_size"),
    )


@dataclass(frozen=True)
class Rope:
    """Rotary positions: `kind` default, linear, yarn, llama3 or dynamic; `values` its settings."""

    kind: str
    theta: float
    values: Config


def read_rope(config: Config) -> Rope:
    """The rotary settings under their old names and new. Unsupported for unknown kinds."""
    values = config.section("rope_parameters", "rope_scaling")
    kind = str(values.find("rope_type", "type") or "default").lower()
    known = ("default", "linear", "yarn", "llama3", "dynamic")
    if kind not in known:
        raise Unsupported(
            f"{values.where} asks for {kind!r} scaling of positions.",
            f"Known kinds are {', '.join(known)}.",
        )
    if kind in ("linear", "yarn"):
        values.number("factor")
    theta = values.find("rope_theta") or config.find("rope_theta", "rotary_emb_base") or 10000.0
    return Rope(kind, Config({"theta": theta}, values.where).number("theta"), values)

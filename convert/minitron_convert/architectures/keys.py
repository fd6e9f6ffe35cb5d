"""The keys of a model: the list that all families share, what computes each, and their types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minitron_convert.architectures.record import Getter, Key, Value
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import KeyValue, ValueType
from minitron_core.quoting import quoted

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

# Kinds of rotary scaling that llama.cpp reads from keys; llama3's comes as a tensor.
SCALED = ("linear", "yarn")
FILE_TYPE = "general.file_type"

_FLOATS = frozenset(
    {
        "attention.layer_norm_epsilon",
        "attention.layer_norm_rms_epsilon",
        "attention.scale",
        "attn_logit_softcapping",
        "embedding_scale",
        "expert_weights_scale",
        "final_logit_softcapping",
        "logit_scale",
        "residual_scale",
        "rope.freq_base",
        "rope.freq_base_swa",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_log_multiplier",
    }
)
_TEXTS = frozenset({"rope.scaling.type", "minitron.conversion"})
_FLAGS = frozenset({"expert_weights_norm", "rope.scaling.finetuned"})


def first(*names: str) -> Getter:
    """The first of several keys of the config that has a value."""
    return lambda model: model.config.find(*names)


def constant(value: Value) -> Getter:
    """A value that is the same for every model of a family."""
    return lambda model: value


def head_dim(model: SourceModel) -> int:
    """The size of a head."""
    return model.size.head_dim


def stated_head_dim(model: SourceModel) -> int | None:
    """The size of a head where transformers' config has one, written or filled in by its class."""
    stated = model.architecture.fills_head_dim or model.config.find("head_dim") is not None
    return model.size.head_dim if stated else None


def _rope_scaling(*names: str, kinds: Sequence[str] = ("yarn",)) -> Getter:
    def value(model: SourceModel) -> Value:
        rope = model.rope
        if rope.kind not in kinds or rope.values.find(*names) is None:
            return None
        return rope.values.number(*names)

    return value


def _original_context(model: SourceModel) -> int | None:
    if model.rope.kind != "yarn":
        return None
    default = model.config.find("original_max_position_embeddings") or model.size.context
    return model.rope.values.whole("original_max_position_embeddings", default=default)


def _gating_function(model: SourceModel) -> int | None:
    name = model.config.find("scoring_func", "score_function")
    if name is None:
        return None
    known = {"softmax": 1, "sigmoid": 2}
    if name not in known:
        raise Unsupported(f"{model.config.where} asks for experts chosen by {quoted(name)}")
    return known[name]


SIZES: tuple[Key, ...] = (
    ("block_count", lambda model: len(model.layers)),
    ("context_length", lambda model: model.size.context),
    ("embedding_length", lambda model: model.size.hidden),
    ("feed_forward_length", lambda model: model.size.ffn),
    ("attention.head_count", lambda model: model.size.heads),
    ("attention.head_count_kv", lambda model: model.size.kv_heads),
)

COMMON: tuple[Key, ...] = (
    *SIZES,
    ("rope.scaling.type", lambda model: model.rope.kind if model.rope.kind in SCALED else None),
    ("rope.scaling.factor", _rope_scaling("factor", kinds=SCALED)),
    ("rope.scaling.original_context_length", _original_context),
    ("rope.scaling.yarn_ext_factor", _rope_scaling("extrapolation_factor")),
    ("rope.scaling.yarn_attn_factor", _rope_scaling("attention_factor", "attn_factor")),
    ("rope.scaling.yarn_beta_fast", _rope_scaling("beta_fast")),
    ("rope.scaling.yarn_beta_slow", _rope_scaling("beta_slow")),
    ("rope.freq_base", lambda model: model.rope.theta),
    ("rope.freq_base_swa", lambda model: model.rope.local_theta),
    ("attention.layer_norm_rms_epsilon", first("rms_norm_eps", "norm_eps")),
    (
        "attention.layer_norm_epsilon",
        first("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    ),
    ("expert_count", first("num_local_experts", "num_experts", "n_routed_experts")),
    ("expert_used_count", first("num_experts_per_tok", "num_experts_per_token")),
    ("expert_group_count", "n_group"),
    ("expert_group_used_count", "topk_group"),
    ("expert_gating_func", _gating_function),
    ("attention.key_length", stated_head_dim),
    ("attention.value_length", stated_head_dim),
    (FILE_TYPE, lambda model: None),
)


def without(keys: Sequence[Key], *names: str) -> tuple[Key, ...]:
    """A list of keys less some of them."""
    return tuple(key for key in keys if key[0] not in names)


def sliding_layers(model: SourceModel) -> list[bool] | None:
    """Which layers attend within a window only, where the config says so layer by layer."""
    kinds = model.config.find("layer_types")
    return [kind == "sliding_attention" for kind in kinds] if isinstance(kinds, list) else None


# What llama.cpp's converter adds for models of Llama's kind.
LLAMA_AFTER: tuple[Key, ...] = (("vocab_size", "vocab_size"), ("rope.dimension_count", head_dim))


def compute(model: SourceModel, keys: Sequence[Key], file_type: int = 0) -> dict[str, Value]:
    """The values in order; a key that comes again keeps its place and takes the later value."""
    values: dict[str, Value] = {}
    for key, source in keys:
        if key == FILE_TYPE:
            values[key] = file_type
            continue
        value = model.config.find(source) if isinstance(source, str) else source(model)
        if value is not None:
            values[key] = value
    return values


def key_values(model: SourceModel, keys: Sequence[Key], file_type: int = 0) -> list[KeyValue]:
    """The entries of the file. Damaged: a value of the config that its key cannot hold."""
    return [_entry(model, key, value) for key, value in compute(model, keys, file_type).items()]


def _entry(model: SourceModel, key: str, value: Value) -> KeyValue:
    # a dot before the arch's own name space: general.*, xielu.*
    full = key if key.startswith(("general.", "xielu.", "minitron.")) else f"{model.arch}.{key}"
    kind, fits = _kind(key)
    wrong = Damaged(
        f"{model.config.where} leads to {quoted(value)} for {full}: it cannot hold that"
    )
    if isinstance(value, list):
        if len({type(item) for item in value}) != 1 or not isinstance(value[0], bool | int | float):
            raise wrong
        return KeyValue.of(full, ValueType.ARRAY, value)
    if not fits(value):
        raise wrong
    return KeyValue.of(full, kind, value)


def _kind(key: str) -> tuple[ValueType, Callable[[Any], bool]]:
    if key in _FLOATS:
        return (
            ValueType.FLOAT32,
            lambda value: (
                isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e38
            ),
        )
    if key in _TEXTS:
        return ValueType.STRING, lambda value: isinstance(value, str)
    if key in _FLAGS:
        return ValueType.BOOL, lambda value: isinstance(value, bool)
    return (
        ValueType.UINT32,
        lambda value: isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32,
    )

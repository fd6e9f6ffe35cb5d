"""Phi-3 and Phi-4-mini: queries, keys and values in one tensor, gate and up in another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from minitron_convert.architectures.keys import FILE_TYPE, constant
from minitron_convert.architectures.model_tensor import ModelTensor, from_array
from minitron_convert.architectures.record import Architecture, needs
from minitron_convert.vocab.rules import VocabularyRules
from minitron_core.errors import Damaged

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel


def _original_context(model: SourceModel) -> int:
    default = model.config.whole("original_max_position_embeddings")
    return model.rope.values.whole("original_max_position_embeddings", default=default)


def _rotary_dimensions(model: SourceModel) -> int:
    settings = (
        model.rope.values.find("partial_rotary_factor"),
        model.config.find("partial_rotary_factor"),
    )
    share = next((value for value in settings if value is not None), 1.0)
    return int(share * model.size.hidden) // model.size.heads


def _attention_factor(model: SourceModel) -> float | None:
    """By how much longrope scales the scores: √(1 + ln(context ÷ original) ÷ ln(original))."""
    if not model.rope.values.find("long_factor"):
        return None
    original = _original_context(model)
    scale = model.size.context / original
    if scale <= 1:
        return 1.0
    if model.rope.kind == "yarn":
        return 0.1 * math.log(scale) + 1.0
    return math.sqrt(1 + math.log(scale) / math.log(original))


def _rope_factors(model: SourceModel) -> list[ModelTensor]:
    """Divisors of the rotary frequencies for long contexts and for short ones."""
    if not model.rope.values.find("long_factor"):
        return []
    tensors = []
    for name in ("long", "short"):
        factors: Any = model.rope.values.find(f"{name}_factor")
        count = _rotary_dimensions(model) // 2
        try:
            with np.errstate(over="ignore"):
                values = np.array(factors, np.float32)
        except (TypeError, ValueError):
            values = np.zeros(0, np.float32)
        if values.shape != (count,) or not np.isfinite(values).all():
            raise Damaged(f"{model.rope.values.where} must give {count} numbers as {name}_factor")
        tensors.append(from_array(f"rope_factors_{name}.weight", values))
    return tensors


PHI3 = Architecture(
    "phi3",
    models="Phi-3-mini, Phi-3-medium, Phi-3.5-mini, Phi-4, Phi-4-mini",
    hub="microsoft/Phi-4-mini-instruct",
    defaults={
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    },
    layer_kinds={
        "layer": needs("attn_norm attn_qkv attn_output ffn_norm ffn_up ffn_down"),
    },
    shapes={"ffn_up": ("gate_and_up", "hidden")},
    sizes=lambda model: {"gate_and_up": 2 * model.size.ffn},
    synthesized_tensors=_rope_factors,
    before=(("rope.scaling.attn_factor", _attention_factor),),
    keys=(
        ("context_length", "max_position_embeddings"),
        ("rope.scaling.original_context_length", _original_context),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("block_count", "num_hidden_layers"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", lambda model: model.size.kv_heads),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("rope.dimension_count", _rotary_dimensions),
        ("rope.freq_base", lambda model: model.rope.theta),
        (FILE_TYPE, constant(None)),
        # llama.cpp knows Phi-4 by a window of zero
        ("attention.sliding_window", lambda model: model.config.find("sliding_window") or 0),
    ),
    rope_kinds=("default", "longrope", "su", "yarn"),
    vocabulary=VocabularyRules("phi"),
)

ARCHITECTURES = {"Phi3ForCausalLM": PHI3}

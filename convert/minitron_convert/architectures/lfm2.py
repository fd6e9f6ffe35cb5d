"""LFM2: short convolutions, attention in some layers, and an FFN or experts in each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minitron_convert.architectures.keys import constant
from minitron_convert.architectures.model_tensor import without_middle
from minitron_convert.architectures.record import (
    ATTENTION,
    EXPERTS,
    GATED_FFN,
    Architecture,
    Experts,
    Layer,
    TensorMapping,
    needs,
)

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel


def _normalize(config: dict[str, Any]) -> dict[str, Any]:
    """The FFN's size as the model computes it from the one that the config states."""
    size: int = config["block_ff_dim" if "block_ff_dim" in config else "intermediate_size"]
    if config["block_auto_adjust_ff_dim"]:
        size = int(2 * size / 3)
        multiplier = config.get("block_ffn_dim_multiplier")
        size = size if multiplier is None else int(multiplier * size)
        multiple = config["block_multiple_of"]
        size = -(-size // multiple) * multiple
    return {**config, "intermediate_size": size}


def _kinds(model: SourceModel) -> list[str]:
    return [
        "attention" if kind == "full_attention" else "conv"
        for kind in model.config.values["layer_types"]
    ]


def _layers(model: SourceModel) -> list[Layer]:
    dense = model.config.find("num_dense_layers")
    return [
        Layer(f"{kind} ffn" if dense is None or i < dense else f"{kind} experts")
        for i, kind in enumerate(_kinds(model))
    ]


def _kv_heads(model: SourceModel) -> list[int]:
    return [model.size.kv_heads if kind == "attention" else 0 for kind in _kinds(model)]


_ATTENTION = f"{ATTENTION} attn_q_norm attn_k_norm"
_CONV = "attn_norm shortconv.conv shortconv.in_proj shortconv.out_proj"
_MIXED = {**needs(EXPERTS), "exp_probs_b.bias": True}

LFM2 = Architecture(
    "lfm2",
    models="LFM2 (350M, 700M, 1.2B, 2.6B)",
    hub="LiquidAI/LFM2-1.2B",
    defaults={
        "max_position_embeddings": 128000,
        "num_key_value_heads": 8,
        "norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "conv_L_cache": 3,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
        "tie_word_embeddings": True,
    },
    normalize=_normalize,
    layer_kinds={
        "attention ffn": needs(f"{_ATTENTION} {GATED_FFN}"),
        "conv ffn": needs(f"{_CONV} {GATED_FFN}"),
    },
    layers=_layers,
    sizes=lambda model: {
        "conv_kernel": model.config.whole("conv_L_cache"),
        "conv_projections": 3 * model.size.hidden,
    },
    ends=needs("token_embd token_embd_norm output"),
    mappings=(TensorMapping(r"(.*\.conv\.conv\.weight)", {r"\1": (without_middle,)}),),
    after=(
        ("vocab_size", "vocab_size"),
        ("shortconv.l_cache", "conv_L_cache"),
        ("attention.head_count_kv", _kv_heads),
    ),
)

LFM2_MOE = replace(
    LFM2,
    arch="lfm2moe",
    models="LFM2-8B-A1B",
    hub="LiquidAI/LFM2-8B-A1B",
    normalize=dict,
    layer_kinds={
        **LFM2.layer_kinds,
        "attention experts": {**needs(_ATTENTION), **_MIXED},
        "conv experts": {**needs(_CONV), **_MIXED},
    },
    renames=((r"(.*)\.expert_bias", r"\1.expert_bias.bias"),),
    experts=Experts(
        {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"},
        r"(?P<prefix>model\.layers\.\d+)\.feed_forward\.experts"
        r"\.(?P<expert>\d+)\.(?P<part>\w+)\.weight",
    ),
    after=(
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("leading_dense_block_count", "num_dense_layers"),
        ("expert_gating_func", constant(2)),  # sigmoid
        *LFM2.after,
    ),
)

ARCHITECTURES = {
    "Lfm2ForCausalLM": LFM2,
    "LFM2ForCausalLM": LFM2,
    "Lfm2MoeForCausalLM": LFM2_MOE,
}

"""GLM-4 of 2025, dense and with experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minitron_convert.architectures.keys import constant, head_dim
from minitron_convert.architectures.record import (
    ATTENTION,
    EXPERTS,
    GATED_EXPERTS,
    QKV,
    SHARED_EXPERT,
    Architecture,
    Layer,
    needs,
)
from minitron_convert.vocab.rules import VocabularyRules

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel


def _rotary_dimensions(model: SourceModel) -> int:
    share = model.rope.values.find("partial_rotary_factor")
    share = model.config.number("partial_rotary_factor") if share is None else share
    return int(head_dim(model) * share)


GLM4 = Architecture(
    "glm4",
    models="GLM-4-9B-0414, GLM-4-32B-0414, GLM-Z1",
    hub="zai-org/GLM-4-9B-0414",
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1.5625e-07,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
    fills_head_dim=True,
    layer_kinds={
        "layer": needs(
            f"{ATTENTION} post_attention_norm ffn_norm ffn_up ffn_down post_ffw_norm",
            optional_bias=QKV,
        )
    },
    shapes={"ffn_up": ("gate_and_up", "hidden")},
    sizes=lambda model: {"gate_and_up": 2 * model.size.ffn},
    after=(("rope.dimension_count", _rotary_dimensions),),
    vocabulary=VocabularyRules(
        "bpe",
        forced_ids={
            "eos": "<|endoftext|>",
            "eot": "<|user|>",
            "unk": "<|endoftext|>",
            "bos": "<|endoftext|>",
        },
    ),
)


def _further_layers(model: SourceModel) -> int:
    """Layers behind the last that predict further tokens, where the checkpoint holds them."""
    count = model.config.whole("num_nextn_predict_layers", default=0, least=0)
    prefix = f"model.layers.{model.size.layers}."
    checkpoint = model.checkpoint
    held = checkpoint.vocab_only or any(name.startswith(prefix) for name in checkpoint.tensors)
    return count if held else 0


def _moe_layers(model: SourceModel) -> list[Layer]:
    dense = min(model.config.whole("first_k_dense_replace", least=0), model.size.layers)
    kinds = ["dense"] * dense + ["experts"] * (model.size.layers - dense)
    return [Layer(kind) for kind in (*kinds, *["next"] * _further_layers(model))]


_MIXED = needs(
    f"{ATTENTION} post_attention_norm {EXPERTS} {SHARED_EXPERT}".replace("ffn_norm ", ""),
    optional_bias=QKV,
)
_MIXED |= {"exp_probs_b.bias": True, "attn_q_norm.weight": False, "attn_k_norm.weight": False}

GLM4_MOE = Architecture(
    "glm4moe",
    models="GLM-4.5, GLM-4.5-Air, GLM-4.6",
    hub="zai-org/GLM-4.5-Air",
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
    },
    layer_kinds={
        "dense": {
            **needs(f"{ATTENTION} post_attention_norm ffn_gate ffn_up ffn_down", optional_bias=QKV),
            "attn_q_norm.weight": False,
            "attn_k_norm.weight": False,
        },
        "experts": _MIXED,
        "next": {
            **_MIXED,
            **needs("nextn.eh_proj nextn.enorm nextn.hnorm nextn.shared_head_norm"),
            "nextn.embed_tokens.weight": False,
            "nextn.shared_head_head.weight": False,
        },
    },
    layers=_moe_layers,
    sizes=lambda model: {
        "shared_ffn": model.config.whole("moe_intermediate_size")
        * model.config.whole("n_shared_experts")
    },
    experts=GATED_EXPERTS,
    after=(
        ("rope.dimension_count", _rotary_dimensions),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_count", "n_shared_experts"),
        ("leading_dense_block_count", "first_k_dense_replace"),
        ("expert_gating_func", constant(2)),  # sigmoid
        ("expert_weights_scale", "routed_scaling_factor"),
        ("expert_weights_norm", "norm_topk_prob"),
        ("nextn_predict_layers", lambda model: _further_layers(model) or None),
    ),
    vocabulary=VocabularyRules(
        "bpe",
        forced_ids={
            "bos": "[gMASK]",
            "eot": "<|user|>",
            "unk": "<|endoftext|>",
            "eom": "<|observation|>",
        },
    ),
)

ARCHITECTURES = {"Glm4ForCausalLM": GLM4, "Glm4MoeForCausalLM": GLM4_MOE}

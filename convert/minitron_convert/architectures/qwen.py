"""Qwen 2, 2.5 and 3, dense and with experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minitron_convert.architectures.record import (
    ATTENTION,
    EXPERTS,
    GATED_EXPERTS,
    GATED_FFN,
    QKV,
    SHARED_EXPERT,
    Architecture,
    needs,
)

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

QWEN2 = Architecture(
    "qwen2",
    models="Qwen2, Qwen2.5, OpenReasoning-Nemotron, OpenMath-Nemotron, AceReason-Nemotron",
    hub="nvidia/OpenReasoning-Nemotron-7B",
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    layer_kinds={"layer": needs(f"{ATTENTION} {GATED_FFN}", bias=QKV)},
)


def _is_reranker(model: SourceModel) -> str | None:
    names = (model.checkpoint.folder.resolve().name, model.config.find("_name_or_path"))
    if any("qwen3-reranker" in str(name).lower() for name in names):
        return "rerankers are not supported: they score a document and do not generate"
    return None


QWEN3 = Architecture(
    "qwen3",
    models="Qwen3, Nemotron-Cascade-8B",
    hub="nvidia/Nemotron-Cascade-8B",
    defaults={**QWEN2.defaults, "head_dim": 128},
    fills_head_dim=True,
    layer_kinds={"layer": needs(f"{ATTENTION} attn_q_norm attn_k_norm {GATED_FFN}")},
    refuse=_is_reranker,
)

QWEN2_MOE = Architecture(
    "qwen2moe",
    models="Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B",
    hub="Qwen/Qwen1.5-MoE-A2.7B",
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    layer_kinds={
        "layer": needs(f"{ATTENTION} {EXPERTS} {SHARED_EXPERT} ffn_gate_inp_shexp", bias=QKV)
    },
    sizes=lambda model: {"shared_ffn": model.config.whole("shared_expert_intermediate_size")},
    experts=GATED_EXPERTS,
    after=(
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ),
)

QWEN3_MOE = Architecture(
    "qwen3moe",
    models="Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder-30B-A3B",
    hub="Qwen/Qwen3-30B-A3B",
    defaults={
        **QWEN2.defaults,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    layer_kinds={"layer": needs(f"{ATTENTION} attn_q_norm attn_k_norm {EXPERTS}")},
    experts=GATED_EXPERTS,
    after=(("expert_feed_forward_length", "moe_intermediate_size"),),
)

ARCHITECTURES = {
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen2MoeForCausalLM": QWEN2_MOE,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
}

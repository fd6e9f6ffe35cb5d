"""OLMo 2, OLMo 3 and OLMoE: norms over whole queries and keys."""

from __future__ import annotations

from dataclasses import replace

from minitron_convert.architectures.keys import constant, sliding_layers
from minitron_convert.architectures.record import (
    ATTENTION,
    EXPERTS,
    GATED_EXPERTS,
    Architecture,
    needs,
)

WHOLE_NORMS = {"attn_q_norm": ("queries",), "attn_k_norm": ("keys",)}

OLMO2 = Architecture(
    "olmo2",
    models="OLMo 2 (1B, 7B, 13B, 32B)",
    hub="allenai/OLMo-2-0425-1B",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    layer_kinds={
        "layer": needs(
            "attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm post_attention_norm "
            "ffn_gate ffn_up ffn_down post_ffw_norm"
        )
    },
    shapes=WHOLE_NORMS,
)


OLMO3 = replace(
    OLMO2,
    models="OLMo 3 (7B, 32B)",
    hub="allenai/Olmo-3-1025-7B",
    defaults={**OLMO2.defaults, "sliding_window": 4096},
    normalize=lambda config: {
        "layer_types": [
            "full_attention" if i % 4 == 3 else "sliding_attention"
            for i in range(config["num_hidden_layers"])
        ],
        **config,
    },
    after=(
        ("attention.sliding_window", "sliding_window"),
        ("attention.sliding_window_pattern", sliding_layers),
    ),
)

OLMOE = Architecture(
    "olmoe",
    models="OLMoE-1B-7B",
    hub="allenai/OLMoE-1B-7B-0924",
    defaults={
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    layer_kinds={"layer": needs(f"{ATTENTION} attn_q_norm attn_k_norm {EXPERTS}")},
    shapes=WHOLE_NORMS,
    experts=GATED_EXPERTS,
    after=(("attention.layer_norm_rms_epsilon", constant(1e-5)),),
    refuse=lambda model: (
        "queries, keys and values are clipped (clip_qkv), which llama.cpp does not do"
        if model.config.find("clip_qkv") is not None
        else None
    ),
)

ARCHITECTURES = {
    "Olmo2ForCausalLM": OLMO2,
    "Olmo3ForCausalLM": OLMO3,
    "OlmoeForCausalLM": OLMOE,
}

"""Llama and the families that differ from it in a few values."""

from __future__ import annotations

from minitron_convert.architectures.keys import LLAMA_AFTER
from minitron_convert.architectures.model_tensor import rotary_pairs
from minitron_convert.architectures.record import (
    ATTENTION,
    EXPERTS,
    GATED_FFN,
    PLAIN_FFN,
    Architecture,
    Experts,
    TensorMapping,
    needs,
)
from minitron_convert.architectures.rope import llama3_frequencies
from minitron_convert.vocab.rules import LLAMA_RULES

ROTARY_PAIRS = TensorMapping(r"(.*\.[qk]_proj\.(?:weight|bias))", {r"\1": (rotary_pairs,)})
LINEAR_BIASES = "attn_q attn_k attn_v attn_output ffn_gate ffn_up ffn_down"
GATED_LAYER = needs(f"{ATTENTION} {GATED_FFN}", optional_bias=LINEAR_BIASES)

LLAMA = Architecture(
    "llama",
    models="Llama 2, 3, 3.1, 3.2, 3.3, Llama-3.1-Minitron-4B, Llama-3.1-Nemotron-Nano-4B, -8B, "
    "Llama-3.1-Nemotron-70B, CodeLlama, SmolLM2, Falcon 3, Yi, DeepSeek-LLM",
    hub="nvidia/Llama-3.1-Minitron-4B-Width-Base",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    fills_head_dim=True,
    layer_kinds={"layer": GATED_LAYER},
    mappings=(ROTARY_PAIRS,),
    synthesized_tensors=llama3_frequencies,
    after=LLAMA_AFTER,
    vocabulary=LLAMA_RULES,
)

MISTRAL = Architecture(
    "llama",
    models="Mistral-7B, Mistral-Nemo, Mistral-NeMo-Minitron-8B, Mistral-Small",
    hub="nvidia/Mistral-NeMo-Minitron-8B-Base",
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    layer_kinds={"layer": GATED_LAYER},
    mappings=(ROTARY_PAIRS,),
    synthesized_tensors=llama3_frequencies,
    after=LLAMA_AFTER,
    vocabulary=LLAMA_RULES,
)

MIXTRAL = Architecture(
    "llama",
    models="Mixtral-8x7B, Mixtral-8x22B",
    hub="mistralai/Mixtral-8x7B-v0.1",
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
    },
    layer_kinds={"layer": needs(f"{ATTENTION} {EXPERTS}")},
    mappings=(ROTARY_PAIRS,),
    experts=Experts(
        {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"},
        r"(?P<prefix>model\.layers\.\d+)\.block_sparse_moe\.experts"
        r"\.(?P<expert>\d+)\.(?P<part>\w+)\.weight",
    ),
    after=LLAMA_AFTER,
    vocabulary=LLAMA_RULES,
)

SMOLLM3 = Architecture(
    "smollm3",
    models="SmolLM3-3B",
    hub="HuggingFaceTB/SmolLM3-3B",
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0,
        "tie_word_embeddings": True,
    },
    layer_kinds={"layer": needs(f"{ATTENTION} {GATED_FFN}")},
    mappings=(ROTARY_PAIRS,),
    synthesized_tensors=llama3_frequencies,
    after=LLAMA_AFTER,
    vocabulary=LLAMA_RULES,
)

ARCEE = Architecture(
    "arcee",
    models="AFM-4.5B",
    hub="arcee-ai/AFM-4.5B",
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    fills_head_dim=True,
    layer_kinds={"layer": needs(f"{ATTENTION} {PLAIN_FFN}")},
    mappings=(ROTARY_PAIRS,),
    synthesized_tensors=llama3_frequencies,
    after=LLAMA_AFTER,
    vocabulary=LLAMA_RULES,
)

ARCHITECTURES = {
    "LlamaForCausalLM": LLAMA,
    "LLaMAForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
    "SmolLM3ForCausalLM": SMOLLM3,
    "ArceeForCausalLM": ARCEE,
}

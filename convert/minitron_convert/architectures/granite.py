"""Granite: Llama with four scales; with experts; and hybrids with state-space layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from minitron_convert.architectures.keys import COMMON, without
from minitron_convert.architectures.llama import ROTARY_PAIRS
from minitron_convert.architectures.mamba import (
    MAMBA_KEYS,
    MAMBA_LAYER,
    MAMBA_MAPPINGS,
    MAMBA_RENAMES,
    mamba_sizes,
)
from minitron_convert.architectures.model_tensor import first_half, second_half
from minitron_convert.architectures.record import (
    ATTENTION,
    EXPERTS,
    GATED_FFN,
    SHARED_EXPERT,
    Architecture,
    Getter,
    Layer,
    TensorMapping,
    needs,
)
from minitron_convert.architectures.rope import llama3_frequencies
from minitron_convert.vocab.rules import LLAMA_RULES, PLAIN_RULES, VocabularyRules

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

DEFAULTS = {
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def _unless_zero(key: str) -> Getter:
    return lambda model: model.config.find(key) or None


GRANITE = Architecture(
    "granite",
    models="Granite 3.0, 3.1, 3.2, 3.3 (2B, 8B)",
    hub="ibm-granite/granite-3.3-2b-instruct",
    defaults=DEFAULTS,
    layer_kinds={"layer": needs(f"{ATTENTION} {GATED_FFN}")},
    mappings=(ROTARY_PAIRS,),
    synthesized_tensors=llama3_frequencies,
    keys=without(COMMON, "attention.key_length", "attention.value_length"),
    after=(
        ("vocab_size", "vocab_size"),
        ("rope.dimension_count", lambda model: model.size.hidden // model.size.heads),
        ("attention.scale", _unless_zero("attention_multiplier")),
        ("embedding_scale", _unless_zero("embedding_multiplier")),
        ("residual_scale", _unless_zero("residual_multiplier")),
        ("logit_scale", _unless_zero("logits_scaling")),
        ("expert_shared_feed_forward_length", _unless_zero("shared_intermediate_size")),
    ),
    vocabulary=LLAMA_RULES,
)

# Gate and up of all experts, or of the FFN that every token uses, stand in one tensor.
_FUSED = r"model\.layers\.(\d+)\.block_sparse_moe\.input_linear\.weight"
_FUSED_EXPERTS = TensorMapping(
    _FUSED,
    {
        r"blk.\1.ffn_gate_exps.weight": (first_half,),
        r"blk.\1.ffn_up_exps.weight": (second_half,),
    },
)


def _shared_ffn(suffix: str) -> tuple[TensorMapping, TensorMapping]:
    """The FFN that every token uses: beside experts (`_shexp`), or the only one of its layer."""
    return (
        TensorMapping(
            r"model\.layers\.(\d+)\.shared_mlp\.input_linear\.weight",
            {
                rf"blk.\1.ffn_gate{suffix}.weight": (first_half,),
                rf"blk.\1.ffn_up{suffix}.weight": (second_half,),
            },
        ),
        TensorMapping(
            r"model\.layers\.(\d+)\.shared_mlp\.output_linear\.weight",
            {rf"blk.\1.ffn_down{suffix}.weight": ()},
        ),
    )


def _shared_sizes(model: SourceModel) -> dict[str, int]:
    return {"shared_ffn": model.config.whole("shared_intermediate_size", default=1)}


GRANITE_MOE = replace(
    GRANITE,
    arch="granitemoe",
    models="Granite 3.0 and 3.1 (1B-A400M, 3B-A800M)",
    hub="ibm-granite/granite-3.1-1b-a400m-instruct",
    defaults={**DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2},
    layer_kinds={
        "layer": needs(f"{ATTENTION} {EXPERTS}"),
        "shared": needs(f"{ATTENTION} {EXPERTS} {SHARED_EXPERT}"),
    },
    layers=lambda model: (
        [Layer("shared" if model.config.find("shared_intermediate_size") else "layer")]
        * model.size.layers
    ),
    sizes=_shared_sizes,
    mappings=(ROTARY_PAIRS, _FUSED_EXPERTS, *_shared_ffn("_shexp")),
)


def _hybrid_layers(model: SourceModel) -> list[Layer]:
    ffn = "experts" if model.config.find("num_local_experts") else "ffn"
    return [
        Layer(f"{kind} {ffn}", {"ffn": model.config.whole("shared_intermediate_size")})
        for kind in _layer_types(model)
    ]


def _layer_types(model: SourceModel) -> list[str]:
    kinds = model.config.find("layer_types") or ["mamba"] * model.size.layers
    return ["attention" if kind == "attention" else "mamba" for kind in kinds]


def _hybrid_sizes(model: SourceModel) -> dict[str, int]:
    return {**_shared_sizes(model), **mamba_sizes(model)}


def _kv_heads(model: SourceModel) -> list[int]:
    kinds = _layer_types(model)
    return [model.size.kv_heads if kind == "attention" else 0 for kind in kinds]


def _has_mamba(model: SourceModel) -> bool:
    return "mamba" in _layer_types(model)


_PLAIN, _MIXED = GATED_FFN, f"{EXPERTS} {SHARED_EXPERT}"

GRANITE_HYBRID = replace(
    GRANITE,
    arch="granitehybrid",
    models="Granite 4.0 (H-Micro, H-Tiny, H-Small, Micro)",
    hub="ibm-granite/granite-4.0-h-micro",
    defaults={
        **GRANITE_MOE.defaults,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "shared_intermediate_size": 1024,
    },
    normalize=lambda config: {
        **config,
        "mamba_d_head": config["mamba_expand"] * config["hidden_size"] // config["mamba_n_heads"],
    },
    layer_kinds={
        "mamba ffn": {**MAMBA_LAYER, **needs(_PLAIN)},
        "mamba experts": {**MAMBA_LAYER, **needs(_MIXED)},
        "attention ffn": needs(f"{ATTENTION} {_PLAIN}"),
        "attention experts": needs(f"{ATTENTION} {_MIXED}"),
    },
    layers=_hybrid_layers,
    sizes=_hybrid_sizes,
    renames=MAMBA_RENAMES,
    mappings=(ROTARY_PAIRS, _FUSED_EXPERTS, *_shared_ffn(""), *MAMBA_MAPPINGS),
    after=(
        *GRANITE.after,
        *MAMBA_KEYS,
        ("attention.head_count_kv", _kv_heads),
        ("rope.scaling.finetuned", lambda model: not _has_mamba(model)),
        ("context_length", lambda model: 1 << 20 if _has_mamba(model) else model.size.context),
    ),
    vocabulary=VocabularyRules(pad_to=8),
)


def _by_layers(model: SourceModel) -> Architecture:
    """With experts or without; without state-space layers it is Granite of the older kind."""
    chosen = GRANITE_HYBRID
    if model.config.find("num_local_experts"):
        mappings = (ROTARY_PAIRS, _FUSED_EXPERTS, *_shared_ffn("_shexp"), *MAMBA_MAPPINGS)
        chosen = replace(chosen, mappings=mappings)
    if not _has_mamba(model):
        arch = "granitemoe" if model.config.find("num_experts_per_tok") else "granite"
        chosen = replace(chosen, arch=arch, vocabulary=PLAIN_RULES)
    return chosen


ARCHITECTURES = {
    "GraniteForCausalLM": GRANITE,
    "GraniteMoeForCausalLM": GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": GRANITE_MOE,
    "GraniteMoeHybridForCausalLM": replace(GRANITE_HYBRID, variant=_by_layers),
}

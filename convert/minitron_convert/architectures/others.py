"""Families that need little of their own: Seed-OSS, Ernie 4.5, StarCoder2, Command R7B, Hunyuan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minitron_convert.architectures.keys import constant, head_dim
from minitron_convert.architectures.llama import GATED_LAYER
from minitron_convert.architectures.record import (
    ATTENTION,
    GATED_FFN,
    PLAIN_FFN,
    Architecture,
    TensorMapping,
    Value,
    needs,
)
from minitron_convert.vocab.rules import VocabularyRules

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

SEED_OSS = Architecture(
    "seed_oss",
    models="Seed-OSS-36B",
    hub="ByteDance-Seed/Seed-OSS-36B-Instruct",
    defaults={
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    fills_head_dim=True,
    layer_kinds={
        "layer": needs(
            f"{ATTENTION} post_attention_norm ffn_gate ffn_up ffn_down",
            optional_bias="attn_q attn_k attn_v",
        )
    },
)

ERNIE = Architecture(
    "ernie4_5",
    models="ERNIE-4.5-0.3B",
    hub="baidu/ERNIE-4.5-0.3B-PT",
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
    fills_head_dim=True,
    layer_kinds={"layer": GATED_LAYER},
    renames=((r"ernie\.(.*)", r"model.\1"),),
    vocabulary=VocabularyRules("pieces", space_prefix="setting last"),
)

_STARCODER = f"{ATTENTION} {PLAIN_FFN}"

STARCODER2 = Architecture(
    "starcoder2",
    models="StarCoder2 (3B, 7B, 15B)",
    hub="bigcode/starcoder2-3b",
    defaults={
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    layer_kinds={"layer": needs(_STARCODER, bias=_STARCODER)},
    ends=needs("token_embd output_norm output", bias="output_norm"),
)

COHERE2 = Architecture(
    "cohere2",
    models="Command R7B, Command A",
    hub="CohereLabs/c4ai-command-r7b-12-2024",
    defaults={
        "max_position_embeddings": 8192,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "logit_scale": 0.0625,
        "rotary_pct": 1.0,
        "tie_word_embeddings": True,
    },
    fills_head_dim=True,
    layer_kinds={"layer": needs(f"{ATTENTION} ffn_gate ffn_up ffn_down")},
    mappings=(TensorMapping(r".*\.bias", only_zeros=True),),
    after=(
        ("logit_scale", "logit_scale"),
        ("attention.sliding_window", "sliding_window"),
        ("vocab_size", "vocab_size"),
        (
            "rope.dimension_count",
            lambda model: int(
                model.config.number("rotary_pct") * (model.size.hidden // model.size.heads)
            ),
        ),
        ("rope.scaling.type", constant("none")),
    ),
)


def _scaled_base(model: SourceModel) -> Value:
    """Hunyuan's way to longer contexts: the base of the frequencies grows with alpha."""
    theta = model.config.number("rope_theta")
    if model.rope.kind != "dynamic":
        return theta
    head = head_dim(model)
    return theta * model.rope.values.number("alpha", default=50.0) ** (head / (head - 2))


def _if_dynamic(value: Value, otherwise: Value = None) -> Value:
    return lambda model: value if model.rope.kind == "dynamic" else otherwise


HUNYUAN_CONTEXT = 262144  # with the scaled base; configs state less

HUNYUAN = Architecture(
    "hunyuan-dense",
    models="Hunyuan (0.5B, 1.8B, 4B, 7B)",
    hub="tencent/Hunyuan-0.5B-Instruct",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    layer_kinds={"layer": needs(f"{ATTENTION} attn_q_norm attn_k_norm {GATED_FFN}")},
    drops_tied_output=True,
    after=(
        ("rope.freq_base", _scaled_base),
        ("rope.scaling.type", _if_dynamic("none")),
        ("rope.scaling.factor", _if_dynamic(1.0)),
        ("rope.scaling.original_context_length", _if_dynamic(HUNYUAN_CONTEXT)),
        ("context_length", _if_dynamic(HUNYUAN_CONTEXT)),
    ),
    vocabulary=VocabularyRules("bpe", eos_key="eod_token_id"),
)

ARCHITECTURES = {
    "SeedOssForCausalLM": SEED_OSS,
    "Ernie4_5ForCausalLM": ERNIE,
    "Ernie4_5_ForCausalLM": ERNIE,
    "Starcoder2ForCausalLM": STARCODER2,
    "Cohere2ForCausalLM": COHERE2,
    "HunYuanDenseV1ForCausalLM": HUNYUAN,
}

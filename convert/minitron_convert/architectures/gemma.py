"""Gemma 2 and 3: norms around zero, norms behind attention and FFN, a window in some layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minitron_convert.architectures.keys import COMMON, FILE_TYPE, constant
from minitron_convert.architectures.model_tensor import vocabulary_rows
from minitron_convert.architectures.nemotron import NORMS_AROUND_ONE
from minitron_convert.architectures.record import (
    ATTENTION,
    GATED_FFN,
    Architecture,
    TensorMapping,
    needs,
)
from minitron_convert.vocab.rules import VocabularyRules

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

BLOCK = f"{ATTENTION} post_attention_norm {GATED_FFN} post_ffw_norm"
VOCABULARY = VocabularyRules("pieces", space_prefix="never last")
OUTPUT_DROPPED = TensorMapping(r"lm_head\.weight")  # the embedding's own

GEMMA2 = Architecture(
    "gemma2",
    models="Gemma 2 (2B, 9B, 27B)",
    hub="google/gemma-2-2b-it",
    defaults={
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    fills_head_dim=True,
    layer_kinds={"layer": needs(BLOCK)},
    ends=needs("token_embd output_norm"),
    mappings=(NORMS_AROUND_ONE, OUTPUT_DROPPED),
    keys=(
        ("context_length", "max_position_embeddings"),
        ("embedding_length", "hidden_size"),
        ("block_count", "num_hidden_layers"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        (FILE_TYPE, constant(None)),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.sliding_window", "sliding_window"),
    ),
    vocabulary=VOCABULARY,
)


def _window(model: SourceModel) -> int | None:
    everywhere = model.config.find("sliding_window_pattern") == 1
    return None if everywhere else model.config.whole("sliding_window")


GEMMA3 = Architecture(
    "gemma3",
    models="Gemma 3 text (270M, 1B)",
    hub="google/gemma-3-1b-it",
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    fills_head_dim=True,
    layer_kinds={"layer": needs(f"{BLOCK} attn_q_norm attn_k_norm")},
    ends=needs("token_embd output_norm"),
    mappings=(
        NORMS_AROUND_ONE,
        OUTPUT_DROPPED,
        TensorMapping(r"(model\.embed_tokens\.weight)", {r"\1": (vocabulary_rows,)}),
    ),
    keys=COMMON,
    after=(
        (
            "final_logit_softcapping",
            lambda model: model.config.find("final_logit_softcapping") or None,
        ),
        ("attention.sliding_window", _window),
    ),
    refuse=lambda model: (
        "its attention scores are capped, which llama.cpp's gemma3 does not do"
        if model.config.find("attn_logit_softcapping")
        else None
    ),
    vocabulary=VOCABULARY,
)

ARCHITECTURES = {"Gemma2ForCausalLM": GEMMA2, "Gemma3ForCausalLM": GEMMA3}

"""EXAONE 3, 3.5 and 4."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from minitron_convert.architectures.keys import head_dim, sliding_layers
from minitron_convert.architectures.record import ATTENTION, GATED_FFN, Architecture, needs
from minitron_convert.architectures.rope import llama3_frequencies
from minitron_convert.vocab.rules import VocabularyRules

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel


def _normalize(config: dict[str, Any]) -> dict[str, Any]:
    """The names of later configs; llama.cpp reads the epsilon under the key of RMS norms only."""
    return {
        **config,
        "num_hidden_layers": config["num_layers"],
        "rms_norm_eps": config["layer_norm_epsilon"],
    }


EXAONE3 = Architecture(
    "exaone",
    models="EXAONE-3.0, EXAONE-3.5",
    hub="LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct",
    defaults={"max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5, "rope_theta": 10000.0},
    normalize=_normalize,
    layer_kinds={"layer": needs(f"{ATTENTION} {GATED_FFN}")},
    synthesized_tensors=llama3_frequencies,
    after=(("rope.dimension_count", head_dim),),
    vocabulary=VocabularyRules("bpe"),
)


def _pattern(model: SourceModel) -> list[bool] | None:
    """Layer by layer, by the kinds of layers or by a pattern: LLLG, or a number of layers."""
    if model.config.find("sliding_window") is None:
        return None
    pattern, layers = model.config.find("sliding_window_pattern"), model.size.layers
    if model.config.find("layer_types") is not None:
        return sliding_layers(model)
    if isinstance(pattern, str) and pattern:
        return [pattern[i % len(pattern)] == "L" for i in range(layers)]
    if isinstance(pattern, int) and pattern > 0:
        return [(i + 1) % pattern != 0 for i in range(layers)]
    return None


EXAONE4 = Architecture(
    "exaone4",
    models="EXAONE-4.0 (1.2B, 32B)",
    hub="LGAI-EXAONE/EXAONE-4.0-1.2B",
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    layer_kinds={
        "layer": needs(
            "attn_q attn_k attn_v attn_output attn_q_norm attn_k_norm post_attention_norm "
            "ffn_gate ffn_up ffn_down post_ffw_norm"
        )
    },
    synthesized_tensors=partial(llama3_frequencies, factor=16.0),
    after=(
        ("vocab_size", "vocab_size"),
        ("attention.sliding_window", "sliding_window"),
        ("attention.sliding_window_pattern", _pattern),
    ),
    vocabulary=VocabularyRules("bpe"),
)

ARCHITECTURES = {"ExaoneForCausalLM": EXAONE3, "Exaone4ForCausalLM": EXAONE4}

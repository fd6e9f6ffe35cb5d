"""Nemotron: LayerNorm1p with biases, squared ReLU without a gate, rotary positions in part."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minitron_convert.architectures.keys import SCALED
from minitron_convert.architectures.model_tensor import ModelTensor, add_one, unchanged
from minitron_convert.architectures.record import (
    ATTENTION,
    PLAIN_FFN,
    Architecture,
    TensorMapping,
    needs,
)
from minitron_convert.checkpoint.config import Config
from minitron_convert.vocab.rules import VocabularyRules
from minitron_core.errors import Damaged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minitron_convert.architectures.source_model import SourceModel

NORMS_AROUND_ONE = TensorMapping(r"(.*norm\.weight)", {r"\1": (add_one,)})


def _one_epsilon(config: dict[str, Any]) -> dict[str, Any]:
    """The epsilon under one name, of the several that configs use."""
    names = ("norm_eps", "layer_norm_eps", "norm_epsilon")
    epsilon = next((config.pop(name) for name in names if name in config), 1e-5)
    return {**config, "norm_eps": epsilon}


def rotary_dimensions(model: SourceModel) -> int:
    """How many of a head's dimensions are turned."""
    names = ("partial_rotary_factor", "rope_percent", "rope_pct", "rope_percentage")
    settings = Config({**model.config.values, **model.rope.values.values}, model.config.where)
    share = settings.number(*names, default=0.5)
    count = int(share * model.size.head_dim)
    if not 0 < count <= model.size.head_dim or count % 2:
        raise Damaged(
            f"{model.config.where} turns {share} of {model.size.head_dim} dimensions, "
            "which is not an even number of them"
        )
    return count


def untied_output(model: SourceModel) -> Sequence[ModelTensor]:
    """The output's weights, which llama.cpp wants even where they are the embedding's."""
    tensors = model.checkpoint.tensors
    embedding = tensors.get("model.embed_tokens.weight")
    if "lm_head.weight" in tensors or not model.tied or embedding is None:
        return []
    return [replace(unchanged(embedding), name="output.weight")]


NEMOTRON = Architecture(
    "nemotron",
    models="Minitron-4B, Minitron-8B (as jais2), Nemotron-Mini-4B, Nemotron-3-8B, Nemotron-4-340B",
    hub="nvidia/Minitron-4B-Base",
    defaults={"max_position_embeddings": 4096, "rope_theta": 10000.0},
    fills_head_dim=True,
    normalize=_one_epsilon,
    layer_kinds={
        "layer": needs(
            f"{ATTENTION} {PLAIN_FFN}",
            bias="attn_norm ffn_norm",
            optional_bias="attn_q attn_k attn_v attn_output ffn_up ffn_down",
        )
    },
    ends=needs("token_embd output_norm output", bias="output_norm"),
    mappings=(NORMS_AROUND_ONE,),
    synthesized_tensors=untied_output,
    after=(
        ("vocab_size", "vocab_size"),
        ("attention.layer_norm_epsilon", "norm_eps"),
        ("rope.dimension_count", rotary_dimensions),
        ("rope.scaling.type", lambda model: None if model.rope.kind in SCALED else "none"),
    ),
    vocabulary=VocabularyRules(last_ids={"pad": 0, "unk": 1}),
)

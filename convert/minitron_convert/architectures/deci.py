"""DeciLM: Llama with heads and FFNs of their own in every block, or none (Llama-Nemotron)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minitron_convert.architectures.keys import FILE_TYPE, constant
from minitron_convert.architectures.llama import ROTARY_PAIRS
from minitron_convert.architectures.record import (
    ATTENTION,
    GATED_FFN,
    Architecture,
    Key,
    Layer,
    Tensors,
    WrongConfig,
    needs,
)
from minitron_convert.architectures.rope import llama3_frequencies

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel

FFN_MULTIPLE = 256
_ATTENTION = {"": "", "linear": "attn_norm attn_output", "full": ATTENTION}


def _normalize(config: dict[str, Any]) -> dict[str, Any]:
    blocks = config["block_configs"]
    heads = config["num_attention_heads"]
    attention = [block["attention"] for block in blocks]
    ffns = [block["ffn"] for block in blocks]
    if any(ffn.get("replace_with_linear") for ffn in ffns):
        raise WrongConfig("a block's FFN is replaced by a matrix, which llama.cpp cannot run")
    groups = [entry["n_heads_in_group"] for entry in attention]
    linear = [bool(entry["replace_with_linear"]) for entry in attention]
    return {
        **config,
        "num_hidden_layers": len(blocks),
        "intermediate_size": 0,
        "block_heads": [heads if g or one else 0 for g, one in zip(groups, linear, strict=True)],
        "block_kv_heads": [heads // group if group else 0 for group in groups],
        "block_ffn": [_ffn_size(ffn["ffn_mult"], config["hidden_size"]) for ffn in ffns],
    }


def _ffn_size(multiplier: float | None, hidden: int) -> int:
    size = int(2 * (multiplier or 0) * hidden / 3)
    return -(-size // FFN_MULTIPLE) * FFN_MULTIPLE


def _layers(model: SourceModel) -> list[Layer]:
    config = model.config.values
    layers = []
    for heads, kv_heads, ffn in zip(
        config["block_heads"], config["block_kv_heads"], config["block_ffn"], strict=True
    ):
        attention = "full" if kv_heads else "linear" if heads else ""
        kind = f"{attention} attention, {'an' if ffn else 'no'} FFN"
        layers.append(Layer(kind, {"kv_heads": kv_heads, "ffn": ffn}))
    return layers


def _layer_kinds() -> dict[str, Tensors]:
    kinds: dict[str, Tensors] = {}
    for attention, tensors in _ATTENTION.items():
        kinds[f"{attention} attention, no FFN"] = needs(tensors)
        kinds[f"{attention} attention, an FFN"] = needs(f"{tensors} {GATED_FFN}")
    return kinds


def _square_head(model: SourceModel) -> int:
    return model.size.hidden // model.size.heads


KEYS: tuple[Key, ...] = (
    ("rope.freq_base", lambda model: model.rope.theta),
    ("attention.head_count_kv", "block_kv_heads"),
    ("attention.head_count", "block_heads"),
    ("feed_forward_length", "block_ffn"),
    ("block_count", lambda model: len(model.layers)),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.key_length", _square_head),
    ("attention.value_length", _square_head),
    (FILE_TYPE, constant(None)),
    ("vocab_size", "vocab_size"),
    ("rope.dimension_count", lambda model: model.size.head_dim),
)

DECI = Architecture(
    "deci",
    models="Llama-3_1-Nemotron-51B, Llama-3_3-Nemotron-Super-49B-v1, -v1_5, "
    "Llama-3_1-Nemotron-Ultra-253B-v1",
    hub="nvidia/Llama-3_3-Nemotron-Super-49B-v1_5",
    normalize=_normalize,
    layer_kinds=_layer_kinds(),
    layers=_layers,
    mappings=(ROTARY_PAIRS,),
    synthesized_tensors=llama3_frequencies,
    keys=KEYS,
)

ARCHITECTURES = {"DeciLMForCausalLM": DECI}

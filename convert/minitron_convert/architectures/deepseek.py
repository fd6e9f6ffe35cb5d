"""DeepSeek-V2 and V3: keys, values and mostly queries too from latent vectors, and experts."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from minitron_convert.architectures.keys import COMMON, constant
from minitron_convert.architectures.model_tensor import ModelTensor, Sizes, WrongShape, take_rows
from minitron_convert.architectures.record import (
    ATTENTION,
    EXPERTS,
    GATED_EXPERTS,
    GATED_FFN,
    SHARED_EXPERT,
    Architecture,
    Layer,
    TensorMapping,
    Tensors,
    needs,
)
from minitron_convert.checkpoint.tensor_ref import Array

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel


def _per_head(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """[heads × (key + value), latent] → [heads, key + value, latent]."""
    rows = sizes["key_plain"] + sizes["value_head"]
    if tensor.rows != sizes["heads"] * rows:
        raise WrongShape(f"{tensor.rows} rows are not {sizes['heads']} heads of {rows}")
    return replace(tensor, shape=(sizes["heads"], rows, tensor.shape[-1]))


def _keys_turned(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Each head's rows for keys, as columns: llama.cpp multiplies queries by them instead."""
    keys = take_rows(_per_head(tensor, sizes), range(sizes["key_plain"]))
    heads, rows, columns = keys.shape

    def read(start: int, stop: int) -> Array:
        first, last = start // columns, -(-stop // columns)
        each = keys.read(first * rows, last * rows).reshape(last - first, rows, columns)
        turned = np.ascontiguousarray(each.swapaxes(1, 2)).reshape(-1, rows)
        return turned[start - first * columns : stop - first * columns]

    return replace(keys, shape=(heads, columns, rows), read=read)


def _values(tensor: ModelTensor, sizes: Sizes) -> ModelTensor:
    """Each head's rows for values."""
    first = sizes["key_plain"]
    return take_rows(_per_head(tensor, sizes), range(first, first + sizes["value_head"]))


def _sizes(model: SourceModel) -> dict[str, int]:
    config, heads = model.config, model.size.heads
    plain, rotary = config.whole("qk_nope_head_dim"), config.whole("qk_rope_head_dim")
    latent, value = config.whole("kv_lora_rank"), config.whole("v_head_dim")
    return {
        "queries": heads * (plain + rotary),
        "key_plain": plain,
        "value_head": value,
        "values": heads * value,
        "kv_latent": latent,
        "kv_latent_rope": latent + rotary,
        "q_latent": config.whole("q_lora_rank", default=0, least=0),
        "shared_ffn": config.whole("moe_intermediate_size") * config.whole("n_shared_experts"),
    }


def _layers(model: SourceModel) -> list[Layer]:
    dense = model.config.whole("first_k_dense_replace", least=0)
    queries = "queries from a latent" if model.config.find("q_lora_rank") else "plain queries"
    return [
        Layer(f"{queries}, {'dense' if i < dense else 'experts'}") for i in range(model.size.layers)
    ]


def _rope_log_multiplier(model: SourceModel) -> float | None:
    scale = model.rope.values.find("mscale_all_dim")
    return None if scale is None else 0.1 * scale


# Numbers of layers of the models that llama.cpp's loader knows to have plain queries.
_PLAIN_QUERIES = (26, 27)


def _refuse(model: SourceModel) -> str | None:
    """Where llama.cpp's loader goes by the number of layers: Lite models have plain queries."""
    layers, vocabulary = model.size.layers, model.size.vocab
    plain = layers in _PLAIN_QUERIES or (layers == 48 and vocabulary == 128256)
    if plain and model.config.find("q_lora_rank"):
        return f"llama.cpp takes a model of {layers} layers for a Lite one, without q_lora_rank"
    if not plain and not model.config.find("q_lora_rank"):
        return f"llama.cpp loads models of {layers} layers only with q_lora_rank"
    return None


def _note(model: SourceModel) -> str | None:
    if model.config.find("topk_method") != "group_limited_greedy":
        return None
    return (
        "llama.cpp chooses groups of experts by the sum of their two best, this model by the best "
        "alone: some tokens get other experts than in the original"
    )


def _layer_kinds() -> dict[str, Tensors]:
    latent = "attn_kv_a_mqa attn_kv_a_norm attn_k_b attn_v_b"
    plain = ATTENTION.replace("attn_k attn_v", latent)
    both = plain.replace("attn_q ", "attn_q_a attn_q_a_norm attn_q_b ")
    kinds: dict[str, Tensors] = {}
    for name, attention in (("plain queries", plain), ("queries from a latent", both)):
        kinds[f"{name}, dense"] = needs(f"{attention} {GATED_FFN}")
        experts = f"{attention} {EXPERTS} {SHARED_EXPERT}"
        kinds[f"{name}, experts"] = needs(experts, optional_bias="exp_probs_b")
    return kinds


DEEPSEEK2 = Architecture(
    "deepseek2",
    models="DeepSeek-V2, DeepSeek-V2.5, DeepSeek-V2-Lite, DeepSeek-Coder-V2, -V2-Lite",
    hub="deepseek-ai/DeepSeek-V2-Lite",
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "first_k_dense_replace": 0,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "routed_scaling_factor": 1.0,
    },
    layer_kinds=_layer_kinds(),
    layers=_layers,
    drops_further_layers=True,
    sizes=_sizes,
    shapes={"attn_output": ("hidden", "values")},
    mappings=(
        TensorMapping(
            r"(.*)\.kv_b_proj\.weight",
            {r"\1.k_b_proj.weight": (_keys_turned,), r"\1.v_b_proj.weight": (_values,)},
        ),
    ),
    experts=GATED_EXPERTS,
    drops_tied_output=True,
    keys=COMMON,
    after=(
        ("attention.head_count_kv", constant(1)),  # all heads share the latent vector
        ("leading_dense_block_count", "first_k_dense_replace"),
        ("vocab_size", "vocab_size"),
        ("attention.q_lora_rank", "q_lora_rank"),
        ("attention.kv_lora_rank", "kv_lora_rank"),
        ("attention.key_length", lambda model: model.sizes()["kv_latent_rope"]),
        ("attention.value_length", "kv_lora_rank"),
        (
            "attention.key_length_mla",
            lambda model: model.sizes()["queries"] // model.size.heads,
        ),
        ("attention.value_length_mla", "v_head_dim"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_count", "n_shared_experts"),
        ("expert_weights_scale", "routed_scaling_factor"),
        ("expert_weights_norm", lambda model: model.config.find("norm_topk_prob") or None),
        ("rope.dimension_count", "qk_rope_head_dim"),
        ("rope.scaling.yarn_log_multiplier", _rope_log_multiplier),
    ),
    fills_head_dim=True,
    refuse=_refuse,
    note=_note,
)

DEEPSEEK3 = replace(
    DEEPSEEK2,
    models="DeepSeek-V3, DeepSeek-V3-0324, DeepSeek-V3.1, DeepSeek-R1",
    hub="deepseek-ai/DeepSeek-V3",
    defaults={
        **DEEPSEEK2.defaults,
        "max_position_embeddings": 4096,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "n_group": 8,
        "topk_group": 4,
        "scoring_func": "sigmoid",
    },
)

ARCHITECTURES = {"DeepseekV2ForCausalLM": DEEPSEEK2, "DeepseekV3ForCausalLM": DEEPSEEK3}

"""DeepSeek-V2-Lite: keys and values from a latent vector, and experts beside a shared one."""

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
        "shared_ffn": config.whole("moe_intermediate_size") * config.whole("n_shared_experts"),
    }


def _layers(model: SourceModel) -> list[Layer]:
    dense = model.config.whole("first_k_dense_replace", least=0)
    return [Layer("dense" if i < dense else "experts") for i in range(model.size.layers)]


def _rope_log_multiplier(model: SourceModel) -> float | None:
    scale = model.rope.values.find("mscale_all_dim")
    return None if scale is None else 0.1 * scale


_ATTENTION = ATTENTION.replace("attn_k attn_v", "attn_kv_a_mqa attn_kv_a_norm attn_k_b attn_v_b")

DEEPSEEK2 = Architecture(
    "deepseek2",
    models="DeepSeek-V2-Lite, DeepSeek-Coder-V2-Lite",
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
    layer_kinds={
        "dense": needs(f"{_ATTENTION} {GATED_FFN}"),
        "experts": needs(f"{_ATTENTION} {EXPERTS} {SHARED_EXPERT}"),
    },
    layers=_layers,
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
    refuse=lambda model: (
        "queries come from a latent vector too (q_lora_rank): only Lite models are supported"
        if model.config.find("q_lora_rank")
        else None
    ),
)

ARCHITECTURES = {"DeepseekV2ForCausalLM": DEEPSEEK2}

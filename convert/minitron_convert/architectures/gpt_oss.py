"""gpt-oss: experts that stay in MXFP4, repacked from the checkpoint's order into ggml's."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from minitron_convert.architectures.model_tensor import (
    ModelTensor,
    WrongShape,
    even_columns,
    even_rows,
    odd_columns,
    odd_rows,
    unchanged,
)
from minitron_convert.architectures.record import ATTENTION, Architecture, TensorMapping, needs
from minitron_convert.checkpoint.tensor_ref import Array
from minitron_convert.encode import MXFP4_BLOCK
from minitron_core.errors import Damaged

if TYPE_CHECKING:
    from minitron_convert.architectures.source_model import SourceModel


def repack(blocks: Array, scales: Array) -> Array:
    """ggml's blocks of 17 bytes, [rows, groups × 17], from blocks [rows, groups, 16] and scales.

    A byte of the checkpoint holds values 2i and 2i + 1 of its 32; one of ggml's j and j + 16.
    """
    low, high = blocks & np.uint8(15), blocks >> np.uint8(4)
    values = np.stack([low, high], -1).reshape(*blocks.shape[:-1], MXFP4_BLOCK)
    half = MXFP4_BLOCK // 2
    paired = values[..., :half] | (values[..., half:] << np.uint8(4))
    return np.concatenate([scales[..., None], paired], -1).reshape(len(blocks), -1)


def _mxfp4(name: str, blocks: ModelTensor, scales: ModelTensor) -> ModelTensor:
    """[experts, rows, groups, 16] bytes and [experts, rows, groups] scales as one tensor."""
    fits = len(blocks.shape) == 4 and blocks.shape == (*scales.shape, MXFP4_BLOCK // 2)
    if not fits or (blocks.dtype, scales.dtype) != ("U8", "U8"):
        raise WrongShape(f"{blocks.name} and {scales.name} are not blocks of MXFP4")
    experts, rows, groups = scales.shape

    def read(start: int, stop: int) -> Array:
        packed = blocks.read(start * groups, stop * groups)
        return repack(packed.reshape(stop - start, groups, -1), scales.read(start, stop))

    return ModelTensor(name, (experts, rows, groups * MXFP4_BLOCK), "MXFP4", read)


def _packed_experts(model: SourceModel) -> list[ModelTensor]:
    """The experts of all layers, which stand before all other tensors."""
    tensors, packed = model.checkpoint.tensors, []
    for name, blocks in tensors.items():
        found = re.fullmatch(r"model\.layers\.(\d+)\.mlp\.experts\.(\w+)_proj_blocks", name)
        scales = tensors.get(name.replace("_blocks", "_scales"))
        if found is None:
            continue
        block, kind = found.groups()
        if scales is None:
            raise Damaged(f"{blocks.path}: {name} has no scales", "download the missing files")
        try:
            whole = _mxfp4(
                f"blk.{block}.ffn_{kind}_exps.weight", unchanged(blocks), unchanged(scales)
            )
        except WrongShape as error:
            raise Damaged(f"{blocks.path}: {error}", "download it again") from error
        if kind == "gate_up":
            # their rows alternate
            packed.append(replace(even_rows(whole, {}), name=f"blk.{block}.ffn_gate_exps.weight"))
            packed.append(replace(odd_rows(whole, {}), name=f"blk.{block}.ffn_up_exps.weight"))
        else:
            packed.append(whole)
    _check(model, packed)
    return packed


def _check(model: SourceModel, packed: list[ModelTensor]) -> None:
    sizes = model.sizes()
    wide = (sizes["experts"], sizes["ffn"], sizes["hidden"])
    narrow = (sizes["experts"], sizes["hidden"], sizes["ffn"])
    kinds = {"ffn_down_exps": narrow, "ffn_gate_exps": wide, "ffn_up_exps": wide}
    wanted = {
        f"blk.{i}.{kind}.weight": shape
        for i in range(model.size.layers)
        for kind, shape in kinds.items()
    }
    if {tensor.name: tensor.shape for tensor in packed} != wanted:
        raise Damaged(
            f"{model.checkpoint.folder} does not hold the experts that config.json describes, "
            "or not in MXFP4",
            "download the files again",
        )


_EXPERTS = r"(model\.layers\.\d+\.mlp\.experts)\."
_BLOCK = r"model\.layers\.(\d+)\.mlp\.experts\."

GPT_OSS = Architecture(
    "gpt-oss",
    models="gpt-oss-20b, gpt-oss-120b (their experts stay in MXFP4)",
    hub="openai/gpt-oss-20b",
    defaults={
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
    },
    fills_head_dim=True,
    layer_kinds={
        "layer": {
            **needs(
                f"{ATTENTION} attn_sinks post_attention_norm ffn_gate_inp",
                bias="attn_q attn_k attn_v attn_output ffn_gate_inp",
            ),
            "ffn_gate_exps.bias": True,
            "ffn_up_exps.bias": True,
            "ffn_down_exps.bias": True,
        }
    },
    renames=((r"(.*\.sinks)", r"\1.weight"),),
    mappings=(
        TensorMapping(rf"{_EXPERTS}\w+_(?:blocks|scales)"),
        TensorMapping(rf"{_BLOCK}down_proj_bias", {r"blk.\1.ffn_down_exps.bias": ()}),
        TensorMapping(
            rf"{_BLOCK}gate_up_proj_bias",
            {
                r"blk.\1.ffn_gate_exps.bias": (even_columns,),
                r"blk.\1.ffn_up_exps.bias": (odd_columns,),
            },
        ),
    ),
    quantizations=("mxfp4",),
    synthesized_tensors=_packed_experts,
    after=(
        ("attention.sliding_window", "sliding_window"),
        ("expert_feed_forward_length", "intermediate_size"),
    ),
)

ARCHITECTURES = {"GptOssForCausalLM": GPT_OSS}

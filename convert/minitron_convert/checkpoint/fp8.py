"""Checkpoints in FP8 with scales: every weight is read as the float32 value that it stands for.

The scale of a tensor is one number, one per row, or one per block of rows and columns (DeepSeek,
and NVIDIA's modelopt). float32(weight) × float32(scale) is what llama.cpp's converter computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from minitron_convert.checkpoint.tensor_ref import Array, TensorRef
from minitron_core.errors import Damaged, Unsupported
from minitron_core.quoting import quoted

FP8 = "F8_E4M3"
_DEFAULT_BLOCK = (128, 128)
_SCALES = ("_scale_inv", "_scale")
# Scales of activations and of the cache, which are not needed to read the weights.
_UNUSED = (".input_scale", ".k_scale", ".v_scale", "activation_scale")


def _e4m3_values() -> Array:
    """The numbers of all bytes: sign, four bits of exponent, three of mantissa, no infinity."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    values = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), normal)
    values[(codes & 127) == 127] = np.nan
    return np.where(codes < 128, values, -values).astype(np.float32)


E4M3_VALUES = _e4m3_values()


@dataclass(frozen=True)
class ScaledTensorRef(TensorRef):
    """A matrix in FP8, read as float32; `block` is how many rows and columns share a scale."""

    scale: TensorRef
    block: tuple[int, int]

    def read(self, start: int = 0, stop: int | None = None) -> Array:
        """Rows `start` to `stop`, scaled. Damaged if the file ends before."""
        stop = self.shape[0] if stop is None else stop
        stored = TensorRef(self.name, self.shape, FP8, self.path, self.offset)
        values: Array = E4M3_VALUES[stored.read(start, stop)]
        return values * self._scales(start, stop)

    def _scales(self, start: int, stop: int) -> Array:
        rows, columns = self.block
        shape = (-(-self.shape[0] // rows), -(-self.shape[1] // columns))
        first, last = start // rows, -(-stop // rows)
        grid = replace(self.scale, shape=shape).read(first, last)
        if self.scale.dtype == "BF16":
            grid = (grid.astype(np.uint32) << np.uint32(16)).view(np.float32)
        grid = grid.astype(np.float32, copy=False)
        wide = np.repeat(np.repeat(grid, rows, 0), columns, 1)
        return wide[start - first * rows : stop - first * rows, : self.shape[1]]


def with_scales(
    tensors: dict[str, TensorRef], quantization: Mapping[str, Any]
) -> dict[str, TensorRef]:
    """The tensors with those in FP8 scaled, and without the scales.

    `quantization` is the config's section of this name. Damaged: a scale that is missing or does
    not fit. Unsupported: FP8 in other than matrices.
    """
    if not any(tensor.dtype == FP8 for tensor in tensors.values()):
        return tensors
    scales = {
        name.removesuffix(suffix): tensor
        for name, tensor in tensors.items()
        for suffix in _SCALES
        if name.endswith(f".weight{suffix}")
    }
    kept = {}
    for name, tensor in tensors.items():
        if tensor.dtype == FP8:
            kept[name] = _scaled(tensor, scales.get(name), quantization)
        elif not name.endswith((*(f".weight{suffix}" for suffix in _SCALES), *_UNUSED)):
            kept[name] = tensor
    return kept


def _scaled(
    tensor: TensorRef, scale: TensorRef | None, quantization: Mapping[str, Any]
) -> TensorRef:
    if scale is None:
        raise Damaged(f"{tensor.path}: {tensor.name} is in FP8 and has no scale")
    if len(tensor.shape) != 2 or scale.dtype not in ("F32", "BF16", "F16"):
        raise Unsupported(f"{tensor.path}: {tensor.name} is in FP8 of an unknown layout")
    rows, columns = tensor.shape
    block = quantization.get("weight_block_size") or _DEFAULT_BLOCK
    if scale.n_elements == 1:
        block = (rows, columns)
    elif scale.shape in ((rows,), (rows, 1)):
        block = (1, columns)
    if not _is_block(block) or scale.n_elements != -(-rows // block[0]) * -(-columns // block[1]):
        raise Damaged(
            f"{tensor.path}: {scale.name} has the shape {list(scale.shape)}, which does not fit "
            f"{list(tensor.shape)} in blocks of {quoted(block, 40)}",
            "the file is damaged, or weight_block_size in config.json is another model's",
        )
    fields = (tensor.name, tensor.shape, "F32", tensor.path, tensor.offset)
    return ScaledTensorRef(*fields, scale, (block[0], block[1]))


def _is_block(block: Any) -> bool:
    whole = isinstance(block, list | tuple) and len(block) == 2
    return whole and all(type(size) is int and size > 0 for size in block)

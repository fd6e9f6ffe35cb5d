"""Numbers to and from the types of a file, bit for bit as llama.cpp's converter writes them."""

from __future__ import annotations

import gguf
import numpy as np

from minitron_convert.checkpoint.tensor_ref import Array
from minitron_core.gguf import BF16, F16, F32

Q8_BLOCK = MXFP4_BLOCK = 32


def to_float(data: Array, dtype: str) -> Array:
    """Checkpoint data as float16 or float32: bf16 exactly, everything else cast to float32."""
    if dtype == "BF16":
        return (data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return data if dtype in ("F16", "F32") else data.astype(np.float32)


def encode(data: Array, dtype: str, tensor_type: int) -> Array:
    """Checkpoint data in a file's type: f32, f16, bf16 or q8_0 (rows a multiple of 32)."""
    if (dtype, tensor_type) == ("BF16", BF16):
        return _quiet_nan(data)
    if (dtype, tensor_type) == ("BF16", F16):
        return _F16_OF_BF16.take(data)
    values = to_float(data, dtype)
    if tensor_type == F32:
        return values.astype(np.float32, copy=False)
    if tensor_type == F16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16, copy=False)
    values = values.astype(np.float32, copy=False)
    return to_bf16(values) if tensor_type == BF16 else to_q8_0(values)


def to_bf16(values: Array) -> Array:
    """float32 → the 16 bits of bf16, rounded to nearest even, NaN kept and made quiet."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(
        16
    )
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    if is_nan.any():
        rounded = np.where(is_nan, (bits >> np.uint32(16)) | np.uint32(64), rounded)
    return rounded.astype(np.uint16)


def _quiet_nan(bits: Array) -> Array:
    is_nan = (bits & np.uint16(0x7FFF)) > np.uint16(0x7F80)
    return np.where(is_nan, bits | np.uint16(64), bits) if is_nan.any() else bits


def to_q8_0(values: Array) -> Array:
    """float32 rows → blocks of 32: a float16 scale, then 32 int8 (ggml's quantize_row_q8_0_ref)."""
    flat = np.ascontiguousarray(values).reshape(-1)
    starts = np.arange(0, len(flat), Q8_BLOCK)
    scale = np.maximum.reduceat(np.abs(flat), starts)[:, None] / np.float32(127)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        scaled = flat.reshape(-1, Q8_BLOCK) * inverse
        out = np.empty((len(scaled), 2 + Q8_BLOCK), np.uint8)
        out[:, :2] = scale.astype(np.float16).view(np.uint8)
        # C's roundf: halves go away from zero. Casting cuts, so all but a half is added; adding
        # a whole half would carry the number just below a half over it.
        scaled += np.copysign(_ALMOST_HALF, scaled)
        out[:, 2:] = scaled.astype(np.int8).view(np.uint8)
    return out


_ALMOST_HALF = np.nextafter(np.float32(0.5), np.float32(0))
with np.errstate(over="ignore"):
    _F16_OF_BF16: Array = to_float(np.arange(1 << 16, dtype=np.uint16), "BF16").astype(np.float16)


def decode(data: Array, tensor_type: int) -> Array:
    """The float32 values of a tensor's bytes. NotImplementedError for types unknown to gguf-py."""
    try:
        kind = gguf.GGMLQuantizationType(tensor_type)
    except ValueError as error:
        raise NotImplementedError from error
    values: Array = gguf.quants.dequantize(np.ascontiguousarray(data), kind)
    return values

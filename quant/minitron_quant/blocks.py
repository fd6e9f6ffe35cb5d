"""Quantized blocks as bytes: the calls into ggml that encode, decode and validate them."""

import numpy as np

from minitron_core.errors import Unsupported
from minitron_core.gguf import F32, TYPE, row_bytes
from minitron_engine.llama.library import decode, ggml
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.kernels.encode import quantize_rows


def encode_blocks(
    ggml_type: int, values: Floats, importance: Floats | None = None, out: Bytes | None = None
) -> Bytes:
    """Rows [rows, columns] as ggml_quantize_chunk encodes them, contiguous.

    importance: of the columns, [columns]. out: where the bytes go, if they have a place already.
    """
    rows, columns = values.shape
    if out is None:
        out = np.empty(rows * row_bytes(ggml_type, columns), np.uint8)
    quantize_rows(ggml_type, values, out, importance)
    return out


def decode_blocks(ggml_type: int, data: Bytes, shape: tuple[int, ...]) -> Floats:
    """The values of blocks as float32; a view where they are float32 already.

    Raises Unsupported for a type that ggml cannot decode.
    """
    data = np.ascontiguousarray(data)
    if ggml_type == F32:
        return data.view(np.float32).reshape(shape)
    values = np.empty(shape, np.float32)
    if not decode(ggml_type, data.ctypes.data, values.ctypes.data, values.size):
        raise Unsupported(f"ggml cannot decode {TYPE[ggml_type].name}")
    return values


def are_valid(ggml_type: int, data: Bytes) -> bool:
    """Whether blocks hold finite values only."""
    return bool(ggml().ggml_validate_row_data(ggml_type, data.ctypes.data, data.nbytes))

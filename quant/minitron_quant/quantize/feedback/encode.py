"""Encode rows with feedback, and keep the plain encoding of every row that it does not help."""

import numpy as np

from minitron_convert.gguf_file import TYPE
from minitron_engine.library import decode, ggml
from minitron_quant.quantize.feedback.factor import BlockFactor, Floats, error_of
from minitron_quant.quantize.feedback.fields import Bytes
from minitron_quant.quantize.feedback.layouts import LAYOUTS
from minitron_quant.quantize.feedback.scalar import ScalarCoder
from minitron_quant.quantize.feedback.solve import solve


def supports(kind: int) -> bool:
    """Whether there is feedback for a type (its ggml id)."""
    return TYPE[kind].name in LAYOUTS


def encode_rows(kind: int, values: Floats, plain: Bytes, blocks: list[BlockFactor]) -> Bytes:
    """The rows [rows, columns] encoded with feedback, as bytes.

    plain: the same rows as ggml encodes them; their scales are where the search starts, and a row
    whose error e H eᵀ is not smaller than theirs stays as it is.
    """
    layout = LAYOUTS[TYPE[kind].name]
    coder = ScalarCoder(layout, plain.reshape(-1, layout.size), len(values))
    solve(coder, values, blocks)
    packed = coder.pack().reshape(len(values), -1)
    kept = plain.reshape(len(values), -1)
    before, after = (
        error_of(decoded(kind, data, values.shape) - values, blocks) for data in (kept, packed)
    )
    # written so that an error which is not a number keeps the plain row
    packed[~(after < before)] = kept[~(after < before)]
    if not ggml().ggml_validate_row_data(kind, packed.ctypes.data, packed.nbytes):
        return plain
    return packed.reshape(-1)


def decoded(kind: int, data: Bytes, shape: tuple[int, ...]) -> Floats:
    """The library's own decoding of blocks."""
    data = np.ascontiguousarray(data)
    values = np.empty(shape, np.float32)
    decode(kind, data.ctypes.data, values.ctypes.data, values.size)
    return values

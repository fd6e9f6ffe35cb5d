"""Blocks as ggml has them: bytes that the library decodes."""

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import F32
from minitron_engine.llama.library import decode

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def decoded(kind: int, data: Bytes, shape: tuple[int, ...]) -> Floats:
    """The library's own decoding of blocks."""
    data = np.ascontiguousarray(data)
    if kind == F32:
        return data.view(np.float32).reshape(shape)
    values = np.empty(shape, np.float32)
    decode(kind, data.ctypes.data, values.ctypes.data, values.size)
    return values

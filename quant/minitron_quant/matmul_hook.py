"""What a hook reads of a matrix product of a graph: its weight's name, its input, its experts."""

import ctypes
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from minitron_engine.llama.library import Tensor, ggml

_NAMES = 1 << 16  # those of all graphs of a model, with room to spare
_WEIGHT, _NAME = Tensor.src.offset, Tensor.name.offset


def weight_name(node: Tensor) -> str:
    """The name of the weight that a product multiplies with."""
    # hooks see every product of every graph: reading a pointer is faster than making a struct
    weight = ctypes.c_void_p.from_address(ctypes.addressof(node) + _WEIGHT).value or 0
    return _plain_name(ctypes.string_at(weight + _NAME))


@lru_cache(_NAMES)
def _plain_name(name: bytes) -> str:
    # the scheduler renames copies to DEVICE#name#number
    text = name.decode()
    return text.split("#")[1] if "#" in text else text


def activations(tensor: Tensor) -> NDArray[np.float32]:
    """A product's input [ne3, ne2, rows, columns], in place where the device is the host."""
    values: NDArray[np.float32] = _strided(tensor, np.float32)  # type: ignore[assignment]
    return values


def expert_ids(tensor: Tensor) -> NDArray[np.int32]:
    """The experts chosen, [tokens, slots]."""
    values: NDArray[np.int32] = _strided(tensor, np.int32)[0, 0]
    return values


def _strided(tensor: Tensor, dtype: type[np.generic]) -> NDArray[np.generic]:
    """All four dimensions, slowest first, with the strides that the tensor has."""
    return np.ndarray(
        shape=tuple(reversed(tensor.ne)),
        dtype=dtype,
        buffer=memoryview(_bytes_of(tensor)),
        strides=tuple(reversed(tensor.nb)),
    )


def _bytes_of(tensor: Tensor) -> "ctypes.Array[ctypes.c_uint8]":
    size = ggml().ggml_nbytes(ctypes.addressof(tensor))
    memory: type[ctypes.Array[ctypes.c_uint8]] = ctypes.c_uint8 * size
    if _is_host(tensor):
        return memory.from_address(tensor.data)
    copy = memory()
    ggml().ggml_backend_tensor_get(ctypes.addressof(tensor), ctypes.addressof(copy), 0, size)
    return copy


def _is_host(tensor: Tensor) -> bool:
    return bool(ggml().ggml_backend_buffer_is_host(tensor.buffer))

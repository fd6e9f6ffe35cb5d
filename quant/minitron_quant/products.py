"""What a matrix product of a graph shows to a hook: its weight's name, its input, its experts."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from minitron_engine.library import Tensor, ggml


def weight_name(node: Tensor) -> str:
    """The name of the weight that a product multiplies with."""
    # the scheduler renames copies to DEVICE#name#number
    name: str = node.src[0].contents.name.decode()
    return name.split("#")[1] if "#" in name else name


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
    if ggml().ggml_backend_buffer_is_host(tensor.buffer):
        return memory.from_address(tensor.data)
    copy = memory()
    ggml().ggml_backend_tensor_get(ctypes.addressof(tensor), ctypes.addressof(copy), 0, size)
    return copy

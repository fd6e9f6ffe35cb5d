"""Replace weights of a loaded model and put them back, without loading it again.

The evaluation callback sees every operation with its operands, the weights among them. The model
must be loaded `replaceable`, for `put` `writable`: laid out as in its file.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import MinitronError
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import open_context
from minitron_engine.llama.library import Tensor, ggml
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings

_OP_NONE = 0
Bytes = NDArray[np.uint8]


class Weights:
    """Tensors by name; one that is used twice (a tied embedding) may have two addresses."""

    def __init__(self, addresses: dict[str, set[int]]) -> None:
        self._addresses = addresses

    def __contains__(self, name: str) -> bool:
        return name in self._addresses

    @contextmanager
    def replaced(self, name: str, data: Bytes, original: Bytes) -> Iterator[None]:
        """Have other bytes of the tensor's type in it during the block.

        Raises as `put`. On the CPU the tensor points to `data` meanwhile: the model's own bytes may
        be pages of its file. A device gets a copy, and `original` afterwards.
        """
        pointed: list[tuple[Tensor, int]] = []
        copied: list[int] = []
        try:
            for address in self._addresses[name]:
                self._check_size(name, address, data)
                tensor = Tensor.from_address(address)
                if ggml().ggml_backend_buffer_is_host(tensor.buffer):
                    pointed.append((tensor, tensor.data))
                    tensor.data = data.ctypes.data
                else:
                    copied.append(address)
                    _copy(address, data)
            yield
        finally:
            for tensor, place in pointed:
                tensor.data = place
            for address in copied:
                _copy(address, original)

    def put(self, name: str, data: Bytes) -> None:
        """Write other bytes of its type into the tensor. MinitronError: another number of bytes."""
        for address in self._addresses[name]:
            self._check_size(name, address, data)
            _copy(address, data)

    def _check_size(self, name: str, address: int, data: Bytes) -> None:
        size = ggml().ggml_nbytes(address)
        if data.nbytes != size:
            raise MinitronError(f"{name} has {size} bytes in memory, not {data.nbytes}")


def _copy(address: int, data: Bytes) -> None:
    ggml().ggml_backend_tensor_set(address, data.ctypes.data, 0, data.nbytes)


def find_weights(model: Model) -> Weights:
    """Decode one token and record the addresses of the model's tensors."""
    addresses: dict[str, set[int]] = {}
    failed: list[BaseException] = []

    def look(address: int, ask: bool, _data: object) -> bool:
        # ctypes would swallow an exception here: keep it
        try:
            for source in Tensor.from_address(address).src if ask else ():
                if source and source.contents.op == _OP_NONE:
                    name = source.contents.name.decode(errors="replace")
                    addresses.setdefault(name, set()).add(ctypes.addressof(source.contents))
        except BaseException as error:
            failed.append(error)
        return False

    hook = api.ggml_backend_sched_eval_callback(look)
    with open_context(model, ContextSettings(n_ctx=32, n_batch=32), hook) as context:
        batch = Batch(1)
        batch.add(np.zeros(1, np.int32), 0, 0, np.ones(1, np.bool_))
        context.decode(batch)
    if failed:
        raise failed[0]
    return Weights(addresses)

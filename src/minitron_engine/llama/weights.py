"""The weights of a loaded model, where they lie: replaced and put back while the model runs.

The evaluation callback shows every operation with its operands, the weights among them. A model
must be loaded `writable`: in memory of its own, and laid out as its file is.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import MinitronError
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Batch, open_context
from minitron_engine.llama.library import Tensor, ggml
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings

_OP_NONE = 0
Bytes = NDArray[np.uint8]


class Weights:
    """Tensors by name; one that serves twice (a tied embedding) may lie in two places."""

    def __init__(self, places: dict[str, set[int]]) -> None:
        self._places = places

    def __contains__(self, name: str) -> bool:
        return name in self._places

    @contextmanager
    def replaced(self, name: str, data: Bytes, original: Bytes) -> Iterator[None]:
        """Have other bytes in the tensor for the time of the block, of the tensor's own type."""
        self.put(name, data)
        try:
            yield
        finally:
            self.put(name, original)

    def put(self, name: str, data: Bytes) -> None:
        """Give the tensor other bytes, of its own type."""
        for address in self._places[name]:
            size = ggml().ggml_nbytes(address)
            if data.nbytes != size:
                raise MinitronError(f"{name} has {size} bytes in memory, not {data.nbytes}")
            ggml().ggml_backend_tensor_set(address, data.ctypes.data, 0, size)


def find_weights(model: Model) -> Weights:
    """Run one token through the model and note where its tensors lie."""
    places: dict[str, set[int]] = {}
    failed: list[BaseException] = []

    def look(address: int, ask: bool, _data: object) -> bool:
        # an exception here would be swallowed by ctypes: keep it
        try:
            for source in Tensor.from_address(address).src if ask else ():
                if source and source.contents.op == _OP_NONE:
                    name = source.contents.name.decode(errors="replace")
                    places.setdefault(name, set()).add(ctypes.addressof(source.contents))
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
    return Weights(places)

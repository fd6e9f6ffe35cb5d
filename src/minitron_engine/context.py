"""A context: decode batches of tokens, read logits."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_engine import interrupts, log
from minitron_engine.binding import api
from minitron_engine.devices import default_threads
from minitron_engine.errors import MinitronError, OutOfResources
from minitron_engine.model import Model

Logits = NDArray[np.float32]

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
# the types that llama.cpp's tools accept for the KV cache, by their ggml ids
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q4_0": 2,
    "q4_1": 3,
    "iq4_nl": 20,
    "q5_0": 6,
    "q5_1": 7,
}


@dataclass(frozen=True)
class ContextSettings:
    """n_ctx is the size of the whole cache, shared evenly by n_seq sequences; sizes in tokens."""

    n_ctx: int
    n_batch: int
    n_seq: int = 1
    threads: int | None = None
    flash_attention: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"


class Batch:
    """Up to `capacity` tokens to decode at once, in numpy arrays that llama.cpp reads in place."""

    def __init__(self, capacity: int) -> None:
        self.token = np.zeros(capacity, dtype=np.int32)
        self.position = np.zeros(capacity, dtype=np.int32)
        self.sequence = np.zeros(capacity, dtype=np.int32)
        self.output = np.zeros(capacity, dtype=np.int8)
        self._one = np.ones(capacity, dtype=np.int32)
        first = self.sequence.ctypes.data
        self._sequence_of = np.arange(capacity, dtype=np.uint64) * np.uint64(4) + np.uint64(first)
        self.size = 0

    def clear(self) -> None:
        """Start over with no tokens."""
        self.size = 0

    def add(
        self, tokens: NDArray[np.int32], position: int, sequence: int, output: NDArray[np.bool_]
    ) -> None:
        """Append a run of tokens of one sequence; `output` marks those whose logits are wanted."""
        start, end = self.size, self.size + len(tokens)
        self.token[start:end] = tokens
        self.position[start:end] = np.arange(position, position + len(tokens))
        self.sequence[start:end] = sequence
        self.output[start:end] = output
        self.size = end

    @property
    def outputs(self) -> int:
        """The number of tokens whose logits are wanted."""
        return int(np.count_nonzero(self.output[: self.size]))

    def struct(self) -> api.llama_batch:
        """The batch as llama.cpp's struct, valid as long as this object lives."""
        batch = api.llama_batch()
        batch.n_tokens = self.size
        ids = ctypes.POINTER(ctypes.c_int32)
        # setattr, because the binding declares these pointers as arrays
        for field, array, kind in (
            ("token", self.token, ids),
            ("pos", self.position, ids),
            ("n_seq_id", self._one, ids),
            ("seq_id", self._sequence_of, ctypes.POINTER(ids)),
            ("logits", self.output, ctypes.POINTER(ctypes.c_int8)),
        ):
            setattr(batch, field, ctypes.cast(array.ctypes.data, kind))
        return batch


class Context:
    """A KV cache and compute buffers for one model; made by `open_context`, which frees them."""

    def __init__(self, handle: int, model: Model, hooked: bool) -> None:
        self.handle = handle
        self.model = model
        self._hooked = hooked
        self.n_ctx: int = api.llama_n_ctx(handle)
        self._memory = api.llama_get_memory(handle)

    def clear(self) -> None:
        """Forget all sequences."""
        api.llama_memory_clear(self._memory, True)

    def decode(self, batch: Batch) -> None:
        """Run the model on a batch. Releases the GIL."""
        with interrupts.deferred() if self._hooked else nullcontext():
            status = api.llama_decode(self.handle, batch.struct())
        if status == 1:
            raise OutOfResources("the context is full", "raise --ctx")
        if status != 0:
            raise MinitronError(f"llama.cpp failed to decode: {log.last_error() or status}")

    def logits(self, rows: int) -> Logits:
        """The logits of the last decode's outputs, [rows, n_vocab]: a view, gone with the next one.

        Waits for the device.
        """
        pointer: Any = api.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.model.n_vocab))


@contextmanager
def open_context(
    model: Model, settings: ContextSettings, hook: Any | None = None
) -> Iterator[Context]:
    """Make a context and free it at the end of the block.

    hook: an object of the binding's ggml_backend_sched_eval_callback type, called for every node.
    """
    threads = settings.threads or default_threads()
    parameters = api.llama_context_default_params()
    parameters.n_ctx = settings.n_ctx
    parameters.n_batch = settings.n_batch
    parameters.n_ubatch = min(parameters.n_ubatch, settings.n_batch)
    parameters.n_seq_max = settings.n_seq
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn_type = FLASH_ATTENTION[settings.flash_attention]
    parameters.type_k = CACHE_TYPES[settings.cache_type_k]
    parameters.type_v = CACHE_TYPES[settings.cache_type_v]
    if hook is not None:
        parameters.cb_eval = hook
    handle = None
    try:
        with interrupts.deferred():
            handle = api.llama_init_from_model(model.handle, parameters)
        if not handle:
            raise _refusal(settings)
        yield Context(handle, model, hook is not None)
    finally:
        if handle:
            api.llama_free(handle)


def _refusal(settings: ContextSettings) -> MinitronError:
    return OutOfResources(
        f"llama.cpp cannot make a context of {settings.n_ctx} tokens: "
        f"{log.last_error() or 'no reason given'}",
        "lower --ctx, or choose another --cache-type or --flash-attn",
    )

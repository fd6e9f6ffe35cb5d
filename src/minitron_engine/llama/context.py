"""A context: a KV cache and buffers in which batches of tokens are decoded to logits."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

from minitron_core import stop
from minitron_core.cpu_limits import default_threads
from minitron_core.errors import MinitronError, OutOfResources
from minitron_engine.llama import log
from minitron_engine.llama.binding import api
from minitron_engine.llama.library import llama
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import (
    CACHE_TYPES,
    FLASH_ATTENTION,
    POOLING,
    ContextSettings,
)
from minitron_engine.process import interrupts
from minitron_engine.process.aborts import no_memory
from minitron_engine.process.malloc_alignment import WorkAlignment, evaluation_callback

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from minitron_engine.llama.batch import Batch

Logits: TypeAlias = "NDArray[np.float32]"

_NO_MEMORY = -2  # of llama_decode: GGML_STATUS_ALLOC_FAILED
_ABORTED = 2  # by the abort callback
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ of llama.cpp


class Context:
    """A KV cache and compute buffers for one model, as `open_context` yields it.

    work_alignment: of the work memory that a decode takes which is larger than those before it.
    """

    def __init__(
        self, handle: int, model: Model, hooked: bool, work_alignment: WorkAlignment
    ) -> None:
        self.handle = handle
        self.model = model
        self.work_alignment = work_alignment
        self._most_tokens = 0
        self._hooked = hooked
        self.n_ctx: int = api.llama_n_ctx(handle)
        self.n_batch: int = api.llama_n_batch(handle)  # may be less than the settings say
        self._memory = api.llama_get_memory(handle)
        self._logits = llama().llama_get_logits_ith
        # llama.cpp writes to the same places again and again, and a view takes time to make: as
        # much as 2 % of a small model's token
        self._views: dict[int, Logits] = {}
        self.used = False  # whether the cache may hold something

    def use_threads(self, threads: int) -> None:
        """Use so many threads from the next decode on."""
        api.llama_set_n_threads(self.handle, threads, threads)

    def clear(self) -> None:
        """Remove all sequences from the cache."""
        api.llama_memory_clear(self._memory, True)

    def keep(self, sequence: int, length: int) -> None:
        """Keep only the first `length` tokens of one sequence, as sequence 0."""
        if sequence:
            api.llama_memory_seq_rm(self._memory, 0, -1, -1)
            api.llama_memory_seq_cp(self._memory, sequence, 0, 0, length)
        api.llama_memory_seq_keep(self._memory, 0)
        api.llama_memory_seq_rm(self._memory, 0, length, -1)

    def forget(self, sequence: int) -> None:
        """Remove one sequence; tokens that others share with it stay."""
        api.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def share(self, target: int, length: int) -> None:
        """Let an empty sequence share the first `length` tokens of sequence 0, without a copy."""
        api.llama_memory_seq_cp(self._memory, 0, target, 0, length)

    def truncate(self, length: int, sequence: int = 0) -> bool:
        """Remove a sequence's tokens from position `length` on; False where the cache cannot."""
        return bool(api.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def synchronize(self) -> None:
        """Wait until the device has finished the last decode."""
        api.llama_synchronize(self.handle)

    def decode(self, batch: "Batch") -> None:
        """Run the model on a batch; releases the GIL.

        Raises OutOfResources for a full context or a lack of memory, KeyboardInterrupt where a
        stop was requested, MinitronError otherwise.
        """
        self.decode_struct(batch.struct())

    def decode_struct(self, batch: api.llama_batch) -> None:
        """As decode, for llama.cpp's own struct."""
        self.used = True
        if batch.n_tokens > self._most_tokens:
            self._most_tokens = batch.n_tokens
            self.work_alignment.wanted = 1
        if self._hooked:
            with interrupts.deferred():
                status = api.llama_decode(self.handle, batch)
        else:
            status = api.llama_decode(self.handle, batch)
        if status == 0:
            return
        if status == _ABORTED:
            raise KeyboardInterrupt
        if status == 1:
            raise OutOfResources("the context is full", "raise --ctx")
        if status == _NO_MEMORY:
            raise no_memory()
        raise MinitronError(f"llama.cpp failed to decode: {log.last_error() or status}")

    def logits(self, rows: int) -> Logits:
        """The logits of the last decode's outputs, [rows, n_vocab]; waits for the device.

        A view that the next decode overwrites.
        """
        import numpy as np

        pointer: Any = api.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.model.n_vocab))

    def logits_address(self, output: int = -1) -> int:
        """Where the logits of one token of the last decode are; waits for the device.

        output: its place in the batch, or a negative place among the outputs, counted from the
        end. The next decode overwrites them.
        """
        address: int | None = self._logits(self.handle, output)
        if address is None:
            raise MinitronError(f"llama.cpp has no logits at {output}")
        return address

    def output_logits(self, output: int = -1) -> Logits:
        """As `logits_address`, as a view, [n_vocab]."""
        address = self.logits_address(output)
        if address not in self._views:
            import numpy as np

            if len(self._views) >= MAX_SEQUENCES:
                self._views.clear()
            row = (ctypes.c_float * self.model.n_vocab).from_address(address)
            self._views[address] = np.ctypeslib.as_array(row)
        return self._views[address]


@contextmanager
def open_context(
    model: Model, settings: ContextSettings, hook: Any | None = None
) -> Iterator[Context]:
    """Make a context and free it at the end of the block.

    hook: an object of the binding's ggml_backend_sched_eval_callback type, called for every node
    of the graph; it aligns the work memory itself (malloc_alignment). Raises OutOfResources with
    llama.cpp's reason where it cannot be made.
    """
    threads = settings.threads or default_threads()
    parameters = api.llama_context_default_params()
    parameters.n_ctx = settings.n_ctx
    parameters.n_batch = settings.n_batch
    parameters.n_ubatch = min(settings.n_ubatch, settings.n_batch)
    parameters.n_seq_max = settings.n_seq
    parameters.kv_unified = settings.unified
    parameters.n_outputs_max = settings.n_outputs or settings.n_batch
    parameters.n_threads = parameters.n_threads_batch = threads
    parameters.flash_attn_type = FLASH_ATTENTION[settings.flash_attention]
    parameters.type_k = CACHE_TYPES[settings.cache_type_k]
    parameters.type_v = CACHE_TYPES[settings.cache_type_v]
    if settings.pooling is not None:
        parameters.embeddings = True
        parameters.pooling_type = POOLING[settings.pooling]
    parameters.abort_callback, parameters.abort_callback_data = _abort_callback()
    alignment = WorkAlignment()
    if hook is not None:
        parameters.cb_eval = hook
    elif not model.offloaded:  # on a GPU llama.cpp would wait for every part of a graph
        aligning = evaluation_callback()
        if aligning is not None:
            parameters.cb_eval = ctypes.cast(aligning, api.ggml_backend_sched_eval_callback)
            parameters.cb_eval_user_data = ctypes.addressof(alignment)
    handle = None
    try:
        with interrupts.deferred():
            handle = api.llama_init_from_model(model.handle, parameters)
        if not handle:
            raise _refusal(settings)
        yield Context(handle, model, hook is not None, alignment)
    finally:
        if handle:
            api.llama_free(handle)


@cache
def _abort_callback() -> tuple[Any, int]:
    """What ggml-cpu calls before every node of a graph: whether a stop was requested.

    It is C's strlen, of the flag: true for a text that is not empty. No Python runs, so the threads
    of a decode wait for none.
    """
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    strlen = ctypes.cast(library.strlen, api.ggml_abort_callback)
    flag = (ctypes.c_char * len(stop.FLAG)).from_buffer(stop.FLAG)
    return strlen, ctypes.addressof(flag)


def _refusal(settings: ContextSettings) -> MinitronError:
    return OutOfResources(
        f"llama.cpp cannot make a context of {settings.n_ctx} tokens: "
        f"{log.last_error() or 'no reason given'}",
        "lower --ctx, or choose another --cache-type or --flash-attn",
    )

"""One growing sequence of tokens in a context: append, forget, shift, save."""

import ctypes
from collections.abc import Sequence as Tokens
from typing import TYPE_CHECKING, Any

from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def common_prefix(first: "ArrayLike", second: "ArrayLike") -> int:
    """How many tokens two sequences begin with in common."""
    import numpy as np

    a, b = np.asarray(first), np.asarray(second)
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


class Sequence:
    """The tokens that a context holds; it is the context's only sequence."""

    def __init__(self, context: Context) -> None:
        if context.used:
            context.clear()
        self.context = context
        self.tokens: list[int] = []
        self._capacity = context.n_batch
        self._memory = api.llama_get_memory(context.handle)
        self._ids: Any = (ctypes.c_int32 * self._capacity)()
        ones: Any = (ctypes.c_int8 * self._capacity)(*[1] * self._capacity)
        self._every_output = ctypes.cast(ones, ctypes.POINTER(ctypes.c_int8))
        # llama.cpp itself numbers the positions, and computes the logits of the last token only
        self._every = False
        self._batch: Any = api.llama_batch_get_one(self._ids, 0)

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, tokens: Tokens[int], *, every: bool = False) -> None:
        """Decode tokens after the others; `every`: compute logits of each, of at most one batch.

        Raises as Context.decode.
        """
        batch = self._batch
        if every is not self._every:
            self._every, batch.logits = every, self._every_output if every else None
        for start in range(0, len(tokens), self._capacity):
            part = tokens[start : start + self._capacity]
            self._ids[: len(part)] = part
            batch.n_tokens = len(part)
            self.context.decode_struct(batch)
            self.tokens += part

    def forget(self, start: int) -> None:
        """Remove all tokens from a position on."""
        if start < len(self.tokens):
            self.context.truncate(start)
            del self.tokens[start:]

    def shift(self, keep: int) -> bool:
        """Drop the older half of what follows the first `keep` tokens: llama.cpp's context shift.

        Returns False where there is nothing to drop or the model's cache cannot shift.
        """
        drop = (len(self.tokens) - keep) // 2
        if drop <= 0 or not api.llama_memory_can_shift(self._memory):
            return False
        api.llama_memory_seq_rm(self._memory, 0, keep, keep + drop)
        api.llama_memory_seq_add(self._memory, 0, keep + drop, len(self.tokens), -drop)
        del self.tokens[keep : keep + drop]
        return True

    def state(self) -> bytes:
        """The cache of all tokens, in llama.cpp's own format."""
        size = api.llama_state_seq_get_size(self.context.handle, 0)
        data = (ctypes.c_uint8 * size)()
        written = api.llama_state_seq_get_data(self.context.handle, data, size, 0)
        return bytes(memoryview(data)[:written])

    def restore(self, tokens: list[int], state: bytes) -> bool:
        """Load a saved state of these tokens; False, and empty, where llama.cpp refuses it."""
        data = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        self.context.used = True
        if api.llama_state_seq_set_data(self.context.handle, data, len(state), 0):
            self.tokens = list(tokens)
            return True
        self.context.clear()
        self.tokens = []
        return False

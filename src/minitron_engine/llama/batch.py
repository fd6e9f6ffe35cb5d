"""Tokens to decode at once."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from minitron_engine.llama.binding import api
from minitron_engine.llama.context import MAX_SEQUENCES


class Batch:
    """Up to `capacity` tokens to decode at once, in numpy arrays that llama.cpp reads in place."""

    def __init__(self, capacity: int) -> None:
        self.token = np.zeros(capacity, dtype=np.int32)
        self.position = np.zeros(capacity, dtype=np.int32)
        self.output = np.zeros(capacity, dtype=np.int8)
        self._sharers = np.ones(capacity, dtype=np.int32)
        # the sequences of a token are consecutive numbers, so a pointer to the first is enough
        self._ids = np.arange(MAX_SEQUENCES, dtype=np.int32)
        self._sequences = np.zeros(capacity, dtype=np.uint64)
        self._struct = self._pointers()
        self.size = 0

    def clear(self) -> None:
        """Remove all tokens."""
        self.size = 0

    def add(
        self, tokens: NDArray[np.int32], position: int, sequence: int, output: NDArray[np.bool_]
    ) -> None:
        """Append consecutive tokens of one sequence; `output` marks those that get logits."""
        ones = np.ones(len(tokens), dtype=np.int32)
        positions = np.arange(position, position + len(tokens), dtype=np.int32)
        self.add_shared(tokens, positions, sequence * ones, ones, output)

    def add_shared(
        self,
        tokens: NDArray[np.int32],
        positions: NDArray[np.int32],
        sequences: NDArray[np.int32],
        sharers: NDArray[np.int32],
        output: NDArray[np.bool_],
    ) -> None:
        """Append tokens that several sequences share, which needs a unified cache.

        A token belongs to as many sequences as `sharers` says, from number `sequences` on.
        """
        start, end = self.size, self.size + len(tokens)
        self.token[start:end] = tokens
        self.position[start:end] = positions
        self._sharers[start:end] = sharers
        self._sequences[start:end] = self._ids.ctypes.data + 4 * sequences.astype(np.int64)
        self.output[start:end] = output
        self.size = end

    @property
    def outputs(self) -> int:
        """The number of tokens whose logits are computed."""
        return int(np.count_nonzero(self.output[: self.size]))

    def struct(self) -> api.llama_batch:
        """llama.cpp's struct of the batch, valid as long as this object lives."""
        self._struct.n_tokens = self.size
        return self._struct

    def _pointers(self) -> api.llama_batch:
        batch = api.llama_batch()
        ids = ctypes.POINTER(ctypes.c_int32)
        # setattr, because the binding declares these pointers as arrays
        for field, array, kind in (
            ("token", self.token, ids),
            ("pos", self.position, ids),
            ("n_seq_id", self._sharers, ids),
            ("seq_id", self._sequences, ctypes.POINTER(ids)),
            ("logits", self.output, ctypes.POINTER(ctypes.c_int8)),
        ):
            setattr(batch, field, ctypes.cast(array.ctypes.data, kind))
        return batch

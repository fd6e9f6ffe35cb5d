"""Σ xᵀx of inputs, block by block, summed by BLAS in its own thread."""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from minitron_core.errors import MinitronError
from minitron_quant.array_backend import NUMPY, Arrays, Floats, to_numpy

# inputs waiting to be added; more would use memory without a gain
_AHEAD = 4


def block_edges(columns: int, largest: int) -> list[tuple[int, int]]:
    """Where the diagonal blocks begin and end: equal widths of at most `largest`.

    Multiples of 256 or 32, the weights of quantized blocks, where the width allows.
    """
    unit = next(u for u in (256, 32, 1) if columns % u == 0 and largest >= u)
    units, most = columns // unit, largest // unit
    count = -(-units // most)
    edges = [unit * (units * k // count) for k in range(count + 1)]
    return list(pairwise(edges))


def _begin_blas() -> None:
    # OpenBLAS allocates memory at the first product and ends the process if there is none: better
    # now than while llama.cpp works in other threads
    square = np.zeros((256, 256), np.float32)
    square.T @ square


class GramSums:
    """The sums of some inputs, float32; `add` returns at once, `take` waits for the rest.

    what: the vectors that are summed, for messages.
    """

    def __init__(
        self,
        blocks: dict[str, list[tuple[int, int]]],
        arrays: Arrays = NUMPY,
        what: str = "inputs",
    ) -> None:
        _begin_blas()
        self._blocks, self._arrays, self._what = blocks, arrays, what
        self._sums = {
            name: [arrays.put(np.zeros((end - start, end - start), np.float32)) for start, end in e]
            for name, e in blocks.items()
        }
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="covariance")
        self._waiting: deque[Future[None]] = deque()

    def add(self, name: str, rows: Floats) -> None:
        """Add an input [tokens, columns]; raises the errors of earlier ones."""
        self._waiting.append(self._pool.submit(self._add, name, rows))
        while len(self._waiting) > _AHEAD:
            self._waiting.popleft().result()

    def _add(self, name: str, rows: Floats) -> None:
        for total, (start, end) in zip(self._sums[name], self._blocks[name], strict=True):
            part = self._arrays.put(np.ascontiguousarray(rows[:, start:end]))
            total += part.T @ part
            if not self._arrays.module.isfinite(total.diagonal()).all():
                raise MinitronError(
                    f"the {self._what} of {name} are not finite: the model or the text breaks it",
                    "check the model with minitron verify, or use F32 or BF16 weights",
                )

    def take(self) -> Iterable[Floats]:
        """All sums in order, after everything is added; then they start from zero."""
        while self._waiting:
            self._waiting.popleft().result()
        for totals in self._sums.values():
            yield from map(to_numpy, totals)
            for total in totals:
                total[:] = 0

    def close(self) -> None:
        """Cancel what waits and end the thread."""
        self._pool.shutdown(wait=True, cancel_futures=True)

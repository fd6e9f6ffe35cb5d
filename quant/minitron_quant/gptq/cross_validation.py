"""Cross-fitting: codes fitted to one half of the text, judged by the other half.

Feedback fits the text that it was given, so the error that it promises there is too small; what
the other half of the text says is honest.
"""

from collections.abc import Callable

import numpy as np

from minitron_core.gguf import TYPE
from minitron_engine.llama.library import ggml
from minitron_quant.covariance.files import PARTS
from minitron_quant.gptq.blocks import Bytes, Floats, decoded
from minitron_quant.gptq.cholesky import BlockFactor, error_of
from minitron_quant.gptq.encode import encode_rows

# shares of the mean diagonal; the search starts in the middle and goes where the error falls
DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_FIRST_TRIED = 3

# (part of the text, damping) → the factors of an input
Factors = Callable[[int, float], list[BlockFactor]]


class Trial:
    """Some rows [rows, columns] of a weight and the importance [columns] of its columns."""

    def __init__(self, values: Floats, importance: Floats, factors: Factors) -> None:
        self._values, self._importance, self._factors = values, importance, factors
        self._halves: tuple[float, list[list[BlockFactor]]] | None = None

    def ratio(self, kind: int, damping: float, both: bool = False) -> float:
        """The error with feedback over that without it; `both`: with the halves exchanged, too."""
        if self._halves is None or self._halves[0] != damping:
            self._halves = damping, [self._factors(part, damping) for part in range(PARTS)]
        halves = self._halves[1]
        data = plain(kind, self._values, self._importance)
        before = after = 0.0
        for fit, judge in (halves, halves[::-1])[: 1 + both]:
            ours = encode_rows(kind, self._values, data, fit)
            before += self._error(kind, data, judge)
            after += self._error(kind, ours, judge)
        return after / before if before > 0 else 1.0

    def _error(self, kind: int, data: Bytes, judge: list[BlockFactor]) -> float:
        left = decoded(kind, data, self._values.shape) - self._values
        return float(error_of(left, judge).sum())

    def damping(self, kind: int) -> float | None:
        """The damping of the least error, tried on a type; None where none beats plain codes."""
        place = _FIRST_TRIED
        best = self.ratio(kind, DAMPINGS[place])
        for step in (1, -1):
            while 0 <= place + step < len(DAMPINGS):
                ratio = self.ratio(kind, DAMPINGS[place + step])
                if ratio >= best:
                    break
                place, best = place + step, ratio
            if place != _FIRST_TRIED:
                break
        return DAMPINGS[place] if best < 1 else None


def plain(kind: int, values: Floats, importance: Floats) -> Bytes:
    """Rows [rows, columns] as ggml encodes them; `importance`: [columns]."""
    rows, columns = values.shape
    size = TYPE[kind].block_bytes * columns // TYPE[kind].block_elements
    data = np.empty(rows * size, np.uint8)
    values, importance = np.ascontiguousarray(values), np.ascontiguousarray(importance)
    pointers = values.ctypes.data, data.ctypes.data
    ggml().ggml_quantize_chunk(kind, *pointers, 0, rows, columns, importance.ctypes.data)
    return data

"""Cross-validation: codes fitted to one half of the text, their error measured on the other half.

GPTQ fits its text, so the error on that text is too small; the other half gives an honest one.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import TYPE, TYPE_ID
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.blocks import decode_blocks, encode_blocks
from minitron_quant.covariance.files import PARTS
from minitron_quant.gptq.cholesky import BlockFactor, error_of
from minitron_quant.gptq.encode_rows import encode_rows

# shares of the mean diagonal; the search starts in the middle and goes where the error falls
DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_FIRST_TRIED = 3

_TRIED_TYPES = (TYPE_ID["q3_K"], TYPE_ID["q4_0"])
# rows of a weight that dampings are tried on
_SAMPLE_ROWS = 32

# (part of the text, damping) → the factors of an input
Factors = Callable[[int, float], list[BlockFactor]]


def tried_type(columns: int) -> int | None:
    """The type that dampings are tried on, which the width allows; None if it allows none."""
    fits = (t for t in _TRIED_TYPES if columns % TYPE[t].block_elements == 0)
    return next(fits, None)


def sampled_rows(rows: int, count: int | None = None) -> NDArray[np.intp]:
    """The numbers of some of the rows of a weight, spread evenly; by default few."""
    return np.linspace(0, rows - 1, min(rows, count or _SAMPLE_ROWS)).astype(np.intp)


def least(error: Callable[[float], float], values: Sequence[float], first: int) -> int:
    """The place of the value of the least error: from the first tried to where the error falls."""
    place, best = first, error(values[first])
    for step in (1, -1):
        while 0 <= place + step < len(values):
            found = error(values[place + step])
            if found >= best:
                break
            place, best = place + step, found
        if place != first:
            break
    return place


class CrossValidation:
    """Some rows [rows, columns] of a weight and the importance [columns] of its columns."""

    def __init__(self, values: Floats, importance: Floats, factors: Factors) -> None:
        self._values = np.ascontiguousarray(values)
        self._importance = np.ascontiguousarray(importance)
        self._factors = factors
        self._fitted: dict[tuple[int, float], list[BlockFactor]] = {}

    def ratio(self, ggml_type: int, damping: float, both: bool = False) -> float:
        """The error with GPTQ over that without it; `both`: with the halves exchanged, too."""
        data = encode_blocks(ggml_type, self._values, self._importance)
        before = after = 0.0
        for part in range(PARTS)[: 1 + both]:
            fit, judge = self._fit(part, damping), self._any_fit(1 - part, damping)
            ours = encode_rows(ggml_type, self._values, data, fit)
            before += self._error(ggml_type, data, judge)
            after += self._error(ggml_type, ours, judge)
        return after / before if before > 0 else 1.0

    def _fit(self, part: int, damping: float) -> list[BlockFactor]:
        if (part, damping) not in self._fitted:
            # the types of one damping follow each other
            self._fitted = {key: v for key, v in self._fitted.items() if key[0] != part}
            self._fitted[part, damping] = self._factors(part, damping)
        return self._fitted[part, damping]

    def _any_fit(self, part: int, damping: float) -> list[BlockFactor]:
        """The factors of a part with any damping: errors are measured without it."""
        there = (blocks for (known, _), blocks in self._fitted.items() if known == part)
        return next(there, None) or self._fit(part, damping)

    def _error(self, ggml_type: int, data: Bytes, judge: list[BlockFactor]) -> float:
        left = decode_blocks(ggml_type, data, self._values.shape) - self._values
        return float(error_of(left, judge).sum())

    def damping(self, ggml_type: int) -> float | None:
        """The damping of the least error, tried on a type; None if none beats ggml's codes."""
        errors: dict[float, float] = {}

        def error(damping: float) -> float:
            errors[damping] = self.ratio(ggml_type, damping)
            return errors[damping]

        best = DAMPINGS[least(error, DAMPINGS, _FIRST_TRIED)]
        return best if errors[best] < 1 else None

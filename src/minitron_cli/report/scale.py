"""The scales of a figure: from values to places, and the values that get a tick."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "log", "asinh"]
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_MARKS = ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
# from this ratio of the largest to the smallest value on a scale is logarithmic
WIDE = 3.0


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` between two places.

    asinh: linear below `unit` and logarithmic beyond it, for values of both signs.
    """

    kind: Kind
    low: float
    high: float
    start: float
    end: float
    unit: float = 1.0

    def place(self, value: float) -> float:
        """Where a value lies; one beyond the ends lies at the end."""
        inside = min(max(value, self.low), self.high)
        low, high = self._even(self.low), self._even(self.high)
        share = (self._even(inside) - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def _even(self, value: float) -> float:
        if self.kind == "log":
            return math.log10(value)
        return math.asinh(value / self.unit) if self.kind == "asinh" else value

    def ticks(self, most: int) -> list[float]:
        """Round values in the range, at most so many."""
        if self.kind == "log":
            return self._log_ticks(most)
        if self.kind == "asinh":
            found = _decades(self.unit, max(abs(self.low), abs(self.high), self.unit), (1,))
            both = [-each for each in reversed(found)] + [0.0, *found]
            return _thinned([each for each in both if self.low <= each <= self.high], most)
        return self._linear_ticks(most)

    def _log_ticks(self, most: int) -> list[float]:
        for marks in _MARKS:
            decades = _decades(self.low, self.high, marks)
            found = [each for each in decades if self.low <= each <= self.high]
            if 2 <= len(found) <= most:
                return found
        return _thinned(found, most) if len(found) > 1 else self._linear_ticks(most)

    def _linear_ticks(self, most: int) -> list[float]:
        # a subnormal number has no tenth
        span = max((self.high - self.low) or abs(self.high) or 1.0, sys.float_info.min * 10**3)
        power = 10.0 ** math.floor(math.log10(span / most))
        step = next(s * power for s in _STEPS if span / (s * power) <= most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _decades(low: float, high: float, marks: Sequence[float]) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    return [
        float(f"{mark * 10.0**power:.6g}") for power in range(first, last + 1) for mark in marks
    ]


def _thinned(values: list[float], most: int) -> list[float]:
    return values[:: math.ceil(len(values) / most)] if values else values


def ranging(
    values: Sequence[float], start: float, end: float, kind: Kind, margin: float = 0.06
) -> Scale:
    """A scale for values with a margin at both ends."""
    low, high = min(values), max(values)
    if kind == "log":
        factor = max((high / low) ** margin, 1.05)
        return Scale(kind, low / factor, high * factor, start, end)
    space = margin * (high - low or abs(high) or 1.0)
    return Scale(kind, low - space, high + space, start, end)

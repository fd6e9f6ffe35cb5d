"""Coordinate descent over the codes that GPTQ chose: every span is chosen again, given all others.

GPTQ chooses a column while those after it are open, so that the first ones never see what the last
ones leave. With the errors e = w − q of all other columns fixed, those of a span S cost
    (e_S + d) H_SS (e_S + d)ᵀ + a constant, with d = H_SS⁻¹ H_S,rest e_rest:
its codes approach w_S + d. A row keeps the codes that it has where the new ones cost no less.
References: QuantEase (arXiv 2309.01885), CDQuant (2406.17542).
"""

from typing import Any, Protocol

import numpy as np

from minitron_core import stop
from minitron_quant.array_backend import NUMPY, Arrays, Doubles, Floats
from minitron_quant.gptq.cholesky import SPAN, BlockFactor

# columns whose targets one large product gives
_STRIP = 128


class SpanSearch(Protocol):
    """Chooses the codes of a few groups of columns at a time, for all rows of a run."""

    @property
    def group(self) -> int:
        """Columns of a group."""
        ...

    def choose_span(self, first: int, targets: Floats, upper: Floats) -> Floats:
        """Choose the codes of the groups from `first` on; returns targets − values.

        targets: [columns, rows]. upper: R of the span's columns.
        """
        ...

    def kept(self, groups: slice) -> list[Any]:
        """A copy of what is chosen for some groups."""
        ...

    def restore(self, groups: slice, kept: list[Any], rows: Any) -> None:
        """Restore a copy, in the rows of a mask."""
        ...


def descend(
    search: SpanSearch,
    weights: Floats,
    errors: Floats,
    block: BlockFactor,
    sweeps: int,
    arrays: Arrays = NUMPY,
) -> None:
    """Choose the spans of a block again, so many times; `errors` follow, in place.

    weights, errors: of the block's columns in their own order, [columns, rows].
    Raises KeyboardInterrupt after a request to stop.
    """
    descent = _Descent(search, weights, errors, block, arrays)
    for _ in range(sweeps):
        descent.sweep()


class _Descent:
    def __init__(
        self,
        search: SpanSearch,
        weights: Floats,
        errors: Floats,
        block: BlockFactor,
        arrays: Arrays,
    ) -> None:
        self._search, self._weights, self._errors = search, weights, errors
        self._block, self._arrays = block, arrays
        self._metric = arrays.put(block.metric)
        self._uppers, self._inverses = map(arrays.put, block.spans)

    def sweep(self) -> None:
        """Choose every span once."""
        order = self._block.order
        for start in range(0, len(order), _STRIP):
            columns = order[start : start + _STRIP]
            # one large product for a strip; what changes in it is added span by span
            pulls = self._metric[self._arrays.put(columns)] @ self._errors
            for first in range(0, len(columns), SPAN):
                stop.check()
                last = first + SPAN
                span = slice(int(columns[first]), int(columns[first]) + SPAN)
                change = self._choose(span, pulls[first:last])
                if last < len(columns):
                    later = self._arrays.put(columns[last:])
                    pulls[last:] += self._metric[later, span] @ change

    def _choose(self, span: slice, pull: Floats) -> Floats:
        """Choose a span's codes; returns how its errors change. pull: H_S e of all columns."""
        search, now, number = self._search, self._errors[span], span.start // SPAN
        upper = self._uppers[number]
        moved = self._inverses[number] @ (pull + self._block.added * now)
        first = (self._block.start + span.start) // search.group
        groups = slice(first, first + SPAN // search.group)
        kept = search.kept(groups)
        found = search.choose_span(first, self._weights[span] + (moved - now), upper)
        better = _cost(found, upper) < _cost(moved, upper)
        search.restore(groups, kept, ~better)
        change: Floats = self._arrays.module.where(better, found - moved, 0)
        self._errors[span] = now + change
        return change


def _cost(errors: Floats, upper: Floats) -> Floats:
    """‖e R‖² of every row."""
    cost: Floats = ((upper.T @ errors) ** 2).sum(0)
    return cost


def error_in_block(errors: Floats, block: BlockFactor) -> Doubles:
    """e H eᵀ of every row, undamped, for errors [columns, rows]."""
    found: Doubles = np.einsum("ij,ij->j", errors, block.metric @ errors, dtype=np.float64)
    return found

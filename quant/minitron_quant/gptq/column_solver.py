"""The GPTQ loop over columns: choose a group, then correct the targets of the groups after it."""

from typing import Any, Protocol

import numpy as np

from minitron_core import stop
from minitron_quant.array_backend import NUMPY, Arrays, Floats, to_numpy
from minitron_quant.gptq.cholesky import BlockFactor
from minitron_quant.gptq.coordinate_descent import descend

# columns whose targets are corrected by one large product
_STRIP = 128


class GroupCoder(Protocol):
    """Chooses the codes of a group of columns that share a scale, for all rows of a run."""

    @property
    def group(self) -> int:
        """Columns of a group."""
        ...

    @property
    def chosen(self) -> list[Any]:
        """The arrays of what is chosen, [rows, groups, …] each."""
        ...

    def choose(self, index: int, weights: Floats, targets: Floats, upper: Floats) -> Floats:
        """Choose the codes of group `index`; returns weights − values, [columns, rows].

        weights, targets: [columns, rows]. upper: R of the group's columns.
        """
        ...


class _Spans:
    """A coder as coordinate_descent.SpanSearch."""

    def __init__(self, coder: GroupCoder, arrays: Arrays) -> None:
        self._coder, self._arrays, self.group = coder, arrays, coder.group

    def choose_span(self, first: int, targets: Floats, upper: Floats) -> Floats:
        errors: Floats = self._arrays.module.zeros_like(targets)
        unit: Floats = upper / upper.diagonal()
        for number, start in enumerate(range(0, len(targets), self.group)):
            columns = slice(start, start + self.group)
            corrected = targets[columns] + unit[:start, columns].T @ errors[:start]
            errors[columns] = self._coder.choose(
                first + number, targets[columns], corrected, upper[columns, columns]
            )
        return errors

    def kept(self, groups: slice) -> list[Any]:
        return [self._arrays.put(each[:, groups]) for each in self._coder.chosen]

    def restore(self, groups: slice, kept: list[Any], rows: Any) -> None:
        for each, old in zip(self._coder.chosen, kept, strict=True):
            each[:, groups][rows] = old[rows]


def solve(
    coder: GroupCoder,
    values: Floats,
    blocks: list[BlockFactor],
    arrays: Arrays = NUMPY,
    sweeps: int = 0,
) -> Floats:
    """Choose all codes of rows [rows, columns]; returns rows − chosen values.

    sweeps: of coordinate descent after GPTQ. Raises KeyboardInterrupt after a request to stop.
    """
    left = np.empty_like(values)
    for block in blocks:
        part = values[:, block.start : block.end]
        weights = arrays.put(np.ascontiguousarray(part.T[block.order]))
        upper, unit = arrays.put(block.upper), arrays.put(block.unit)
        groups = (block.start + block.order) // coder.group
        errors = arrays.module.zeros_like(weights)
        for start in range(0, len(weights), _STRIP):
            end = min(start + _STRIP, len(weights))
            targets = weights[start:end]
            if start:
                targets = targets + unit[:start, start:end].T @ errors[:start]
            for first in range(start, end, coder.group):
                stop.check()
                columns = slice(first, first + coder.group)
                corrected = targets[first - start : columns.stop - start]
                if first > start:
                    corrected = corrected + unit[start:first, columns].T @ errors[start:first]
                errors[columns] = coder.choose(
                    int(groups[first]), weights[columns], corrected, upper[columns, columns]
                )
        order = arrays.put(block.order)
        own = arrays.module.empty_like(errors)
        own[order] = errors
        if sweeps:
            descend(_Spans(coder, arrays), arrays.put(part.T), own, block, sweeps, arrays)
        left[:, block.start : block.end] = to_numpy(own).T
    return left

"""The GPTQ loop over columns: choose a group, then correct the targets of the groups after it."""

from typing import Protocol

import numpy as np

from minitron_core import stop
from minitron_quant.array_backend import NUMPY, Arrays, Floats, to_numpy
from minitron_quant.gptq.cholesky import BlockFactor

# columns whose targets are corrected by one large product
_STRIP = 128


class GroupCoder(Protocol):
    """Chooses the codes of a group of columns that share a scale, for all rows of a run."""

    @property
    def group(self) -> int:
        """Columns of a group."""
        ...

    def choose(self, index: int, weights: Floats, targets: Floats, upper: Floats) -> Floats:
        """Choose the codes of group `index`; returns weights − values, [columns, rows].

        weights, targets: [columns, rows]. upper: R of the group's columns.
        """
        ...


def solve(
    coder: GroupCoder, values: Floats, blocks: list[BlockFactor], arrays: Arrays = NUMPY
) -> Floats:
    """Choose all codes of rows [rows, columns]; returns rows − chosen values.

    Raises KeyboardInterrupt after a request to stop.
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
        left[:, block.start + block.order] = to_numpy(errors).T
    return left

"""Covariances factored: of an input for GPTQ, damped and ordered; of an equation to solve."""

import math
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_quant.array_backend import Doubles, Floats

# columns that keep together when the order changes: no type's group of one scale is wider
SPAN = 32
_MAX_DAMPING = 100.0
_STRIP = 256
_SHARE = 512  # of rows or right sides that a thread takes at once
_Reals = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class BlockFactor:
    """One diagonal block, for the columns start..end.

    order: the columns of the block from the first to be chosen to the last. upper: R of the
    ordered block, H = R Rᵀ. unit: R with every column divided by its diagonal. metric: H itself,
    undamped, in the columns' own order. damping: as a share of the mean diagonal; added: what it
    adds to the diagonal, NaN where R is not that of H.
    """

    start: int
    end: int
    order: NDArray[np.intp]
    upper: Floats
    unit: Floats
    metric: Floats
    damping: float
    added: float

    @cached_property
    def spans(self) -> tuple[Floats, Floats]:
        """R and the inverse of each span's own damped H, [spans, SPAN, SPAN] each.

        I and zeros where that H is not positive by the rounding of its sums.
        """
        shape = (len(self.metric) // SPAN, SPAN, SPAN)
        uppers, inverses = np.zeros(shape) + np.eye(SPAN), np.zeros(shape)
        for number in range(len(uppers)):
            columns = slice(SPAN * number, SPAN * (number + 1))
            damped = self.metric[columns, columns] + self.added * np.eye(SPAN)
            upper = _upper(damped)
            if upper is not None:
                uppers[number], inverses[number] = upper, np.linalg.inv(damped)
        return _single(uppers), _single(inverses)


def factor_block(start: int, covariance: Doubles, damping: float, span: int = SPAN) -> BlockFactor:
    """Factor Σ xᵀx / tokens of the columns from `start` on; more damping where it is singular.

    span: how many columns keep together when the order changes.
    """
    size = len(covariance)
    order = _order(covariance.diagonal(), span)
    ordered = covariance[np.ix_(order, order)]
    mean = float(covariance.diagonal().mean())
    while True:
        added = damping * mean if mean > 0 else 1.0
        upper = _upper(ordered + added * np.eye(size))
        if upper is not None:
            break
        if damping > _MAX_DAMPING:  # values too large for the arithmetic: nothing is compensated
            upper, added = np.eye(size), math.nan
            break
        damping = max(10 * damping, 1e-6)
    unit = upper / upper.diagonal()
    matrices = _single(upper), _single(unit), _single(covariance)
    return BlockFactor(start, start + size, order, *matrices, damping, added)


def _single(matrix: Doubles) -> Floats:
    return np.ascontiguousarray(matrix, np.float32)


def _upper(matrix: Doubles) -> Doubles | None:
    """R, upper triangular, with matrix = R Rᵀ: Cholesky from the last column to the first."""
    try:
        upper = np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1].astype(np.float64)
    except np.linalg.LinAlgError:
        return None
    smallest = float(upper.diagonal().min())
    return upper if np.isfinite(upper).all() and smallest > 0 else None


def _order(diagonal: Doubles, span: int) -> NDArray[np.intp]:
    """Columns with the largest inputs first, in spans: nothing compensates the last ones."""
    span = span if len(diagonal) % span == 0 else len(diagonal)
    spans = np.argsort(-diagonal.reshape(-1, span).sum(1), kind="stable")
    return (spans[:, None] * span + np.arange(span)).reshape(-1)


def error_of(difference: Floats, blocks: list[BlockFactor]) -> Doubles:
    """e H eᵀ of every row [rows, columns] of differences, undamped."""
    total = np.zeros(len(difference))
    for block in blocks:
        total += _block_error(difference, block)
    return total


def errs_more(difference: Floats, blocks: list[BlockFactor], errors: Doubles) -> NDArray[np.bool_]:
    """Whether e H eᵀ of every row is more than these errors; False for what is not a number."""
    total = np.zeros(len(difference))
    for block in blocks:
        total += _block_error(difference, block)
        if (total > errors).all():  # no other block makes it less
            break
    more: NDArray[np.bool_] = total > errors
    return more


def _block_error(difference: Floats, block: BlockFactor) -> Doubles:
    part = np.ascontiguousarray(difference[:, block.start : block.end])
    total = np.zeros(len(part))
    for start in range(0, part.shape[1], _STRIP):
        # H is symmetric: what lies right of a strip's diagonal block counts twice
        strip, rest = part[:, start : start + _STRIP], part[:, start:]
        product = strip @ block.metric[start : start + _STRIP, start:]
        product[:, strip.shape[1] :] *= 2
        total += np.einsum("ij,ij->i", product, rest, dtype=np.float64)
    return total


def solve_positive(metric: Floats, added: float, right: Floats, pool: Executor) -> Floats:
    """The X of (metric + added) X = right, [n, m], for a symmetric positive definite sum [n, n].

    Half the work of a solution by LU, and the threads of the pool share it: BLAS has one thread
    here. Rows and right sides are cut alike for any number of threads, so that the bits do not
    depend on it. In float32, as the sums are; in float64 where those are not positive by rounding.
    """
    try:
        return _solve_positive(metric, added, right, pool)
    except np.linalg.LinAlgError:
        pass
    found: NDArray[np.floating[Any]]
    doubles = metric.astype(np.float64)
    try:
        found = _solve_positive(doubles, added, right, pool)
    except np.linalg.LinAlgError:
        found = np.linalg.solve(_damped(doubles, added), right)
    return found.astype(np.float32)


def _solve_positive(metric: _Reals, added: float, right: Floats, pool: Executor) -> _Reals:
    lower, inverses = _factor(_damped(metric, added), pool)
    found = np.array(right, metric.dtype)
    parts = [found[:, part] for part in strips(0, found.shape[1], _SHARE)]
    list(pool.map(lambda part: _substitute(lower, inverses, part), parts))
    return found


def _damped(metric: _Reals, added: float) -> _Reals:
    """A copy with `added` on the diagonal: one matrix of memory, where a sum would take three."""
    damped = metric.copy()
    damped[np.diag_indices_from(damped)] += added
    return damped


def _factor(matrix: _Reals, pool: Executor) -> tuple[_Reals, list[_Reals]]:
    """L with matrix = L Lᵀ in the lower triangle, in place, and its diagonal blocks' inverses.

    What is above the triangle means nothing.
    """
    inverses = []
    for strip in strips(0, len(matrix), _STRIP):
        top, known = matrix[strip, strip], matrix[strip, : strip.start]
        top[:] = np.linalg.cholesky(top - known @ known.T)
        inverse = np.linalg.inv(top)

        def extend(rows: slice, strip: slice = strip, inverse: _Reals = inverse) -> None:
            before = slice(strip.start)
            left = matrix[rows, strip] - matrix[rows, before] @ matrix[strip, before].T
            matrix[rows, strip] = left @ inverse.T

        list(pool.map(extend, strips(strip.stop, len(matrix), _SHARE)))
        inverses.append(inverse)
    return matrix, inverses


def _substitute(lower: _Reals, inverses: list[_Reals], found: _Reals) -> None:
    """Turn right sides [n, m] into the solutions of L Lᵀ X = right, in place."""
    blocks = [*zip(strips(0, len(lower), _STRIP), inverses, strict=True)]
    for strip, inverse in blocks:
        left = found[strip] - lower[strip, : strip.start] @ found[: strip.start]
        found[strip] = inverse @ left
    for strip, inverse in reversed(blocks):
        left = found[strip] - lower[strip.stop :, strip].T @ found[strip.stop :]
        found[strip] = inverse.T @ left


def strips(start: int, end: int, size: int) -> Iterator[slice]:
    """start..end in slices of `size`, the last of which may be shorter."""
    for first in range(start, end, size):
        yield slice(first, min(first + size, end))

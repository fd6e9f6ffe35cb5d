"""Drift: how the inputs in the quantized model differ from the full model's, and its repair.

With x, r the inputs and residual states of the full model, x̃, r̃ those of the model quantized so far
and H̃ = Σ x̃ᵀx̃, the target of a weight W whose product is added to the states r is
    T = W + [beta W Σ(x−x̃)ᵀx̃ + gamma Σ(r−r̃)ᵀx̃] (H̃ + ridge)⁻¹,
the least squares solution of T x̃ = W x + (r − r̃), for beta = gamma = 1 and no ridge.

Where a product is added to the states, tokens count by 1 / the mean square of the sum: what follows
normalizes it. Without that the first token of a text, whose states are a hundred times the others'
in many models, decides alone.
References: GPTAQ (arXiv 2504.02692), Qronos (2505.11695), QEP (2504.09629), LoaQ (2509.06297).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import MinitronError
from minitron_quant.array_backend import Floats
from minitron_quant.gptq.cholesky import solve_positive, strips
from minitron_quant.gptq.cross_validation import least

# shares of the mean diagonal; the search starts in the middle
RIDGES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_FIRST_TRIED = 3
HALVES = 2
# of a sum, for one thread
_STRIP = 512


@dataclass(frozen=True)
class DriftSettings:
    """beta: the share of the inputs' drift to repair. gamma: of the residual states'.

    ridge, damping: shares of the mean diagonal of H̃ that are added to it, for the targets and for
    the codes; None for those of the least error on text that they were not fitted to.
    """

    beta: float = 1.0
    gamma: float = 1.0
    ridge: float | None = None
    damping: float | None = None


@dataclass(frozen=True)
class Drift:
    """What the quantized model lacks in a chunk's inputs, and in states that a product is added to.

    inputs: beta (x − x̃), [tokens, columns]. weight: W, [rows, columns], whose product is added to
    the states, and states: gamma (r − r̃), [tokens, rows]; None where it is not.
    """

    inputs: Floats
    weight: Floats | None = None
    states: Floats | None = None

    def of(self, rows: slice) -> Floats:
        """Some columns of W (x − x̃) + (r − r̃), or of x − x̃, [tokens, columns]."""
        if self.weight is None or self.states is None:
            return self.inputs[:, rows]
        found: Floats = self.inputs @ self.weight[rows].T
        found += self.states[:, rows]
        return found

    def scaled(self, scale: Floats) -> "Drift":
        """With tokens that count by `scale`, [tokens, 1]."""
        states = None if self.states is None else self.states * scale
        return Drift(self.inputs * scale, self.weight, states)


class DriftSums:
    """The sums over both halves of a text that the targets of one stage need, float32.

    columns: of the input. rows: of the residual states; 0 where the product is not added to them.
    """

    def __init__(self, columns: int, rows: int = 0) -> None:
        self.columns, self.is_residual = columns, rows > 0
        self._metric = np.zeros((HALVES, columns, columns), np.float32)
        self._drift = np.zeros((HALVES, rows or columns, columns), np.float32)
        self._tokens = [0] * HALVES
        self._weights = [0.0] * HALVES

    def additions(
        self, half: int, drift: Drift, ours: Floats, scale: Floats | None = None
    ) -> Iterator[Callable[[], None]]:
        """What adds tokens of one half, to be called in any order, each of them in a thread.

        ours: the inputs x̃, [tokens, columns]. scale: square roots of the tokens' weights,
        [tokens]; None for equal ones.
        """
        self._tokens[half] += len(ours)
        self._weights[half] += len(ours) if scale is None else float(scale @ scale)
        if scale is not None:
            drift, ours = drift.scaled(scale[:, None]), ours * scale[:, None]

        def add_metric(rows: slice) -> None:
            # symmetric: `metric` fills in what is right of the diagonal blocks
            self._metric[half, rows, : rows.stop] += ours[:, rows].T @ ours[:, : rows.stop]

        def add_drift(rows: slice) -> None:
            self._drift[half, rows] += drift.of(rows).T @ ours

        for rows in strips(0, self.columns, _STRIP):
            yield partial(add_metric, rows)
        for rows in strips(0, self._drift.shape[1], _STRIP):
            yield partial(add_drift, rows)

    def metric(self, halves: Sequence[int] = range(HALVES), columns: slice = slice(None)) -> Floats:
        """H̃ / tokens, over some halves, of some columns."""
        mean = self._mean(self._metric[:, columns, columns], halves)
        for rows in strips(0, len(mean), _STRIP):
            mean[: rows.start, rows] = mean[rows, : rows.start].T
            lower = np.tril(mean[rows, rows])
            mean[rows, rows] = lower + np.tril(lower, -1).T
        return _finite(mean)

    def squares(self) -> Floats:
        """The diagonal of the metric, [columns]."""
        return _finite(self._mean(self._metric.diagonal(axis1=1, axis2=2), range(HALVES)))

    def wanted(
        self,
        values: Floats,
        rows: slice | NDArray[np.intp],
        pool: Executor,
        halves: Sequence[int] = range(HALVES),
    ) -> Floats:
        """beta W Σ(x−x̃)ᵀx̃ + gamma Σ(r−r̃)ᵀx̃ per token of some rows of a weight W.

        values: those rows, [rows, columns]. rows: their numbers.
        """
        mean = self._mean(self._drift, halves)
        return mean[rows] if self.is_residual else _product(values, mean, pool)

    def shift(self, ridge: float, pool: Executor) -> Floats:
        """beta Σ(x−x̃)ᵀx̃ (H̃ + ridge)⁻¹, [columns, columns]."""
        return solve(self.metric(), self._mean(self._drift, range(HALVES)), ridge, pool)

    def _mean(self, sums: Floats, halves: Sequence[int]) -> Floats:
        first, *others = halves
        total: Floats = sums[first].copy()
        for half in others:
            total += sums[half]
        total /= np.float32(sum(self._weights[half] for half in halves) or 1)
        return total

    @property
    def tokens(self) -> int:
        """How many were added."""
        return sum(self._tokens)

    @property
    def has_halves(self) -> bool:
        """Whether both halves have tokens."""
        return min(self._tokens) > 0


def token_scale(states: Floats) -> Floats:
    """1 / root mean square of every token's states, [tokens]; 0 for states of zeros."""
    size = np.sqrt(np.mean(np.square(states), axis=1))
    scale: Floats = np.zeros_like(size)
    np.divide(1, size, out=scale, where=size > 0)
    return scale


def choose_ridge(
    sums: DriftSums,
    values: Floats,
    rows: NDArray[np.intp],
    settings: DriftSettings,
    pool: Executor,
    start: float | None = None,
) -> float:
    """The ridge whose target, fitted to the first half of the text, errs least on the second.

    values, rows: of a weight, as in `DriftSums.wanted`. The search goes from `start`, by default a
    middle one of RIDGES, to where the error falls.
    """
    if settings.ridge is not None:
        return settings.ridge
    if not sums.has_halves:
        return RIDGES[-1]
    fit, judge = (sums.metric([half]) for half in range(HALVES))
    fitted, judged = (sums.wanted(values, rows, pool, [half]) for half in range(HALVES))

    def error(ridge: float) -> float:
        """Of W + D on the second half, less that of W: tr D H Dᵀ − 2 tr D wantedᵀ."""
        moved = solve(fit, fitted, ridge, pool)
        return float(((moved @ judge - 2 * judged) * moved).sum(dtype=np.float64))

    first = _FIRST_TRIED if start is None else RIDGES.index(start)
    return RIDGES[least(error, RIDGES, first)]


def solve(metric: Floats, wanted: Floats, ridge: float, pool: Executor) -> Floats:
    """Wanted (H̃ + ridge)⁻¹; ridge: a share of the mean diagonal."""
    mean = float(metric.diagonal().mean(dtype=np.float64))
    return solve_positive(metric, ridge * mean if mean > 0 else 1.0, wanted.T, pool).T


def _finite(mean: Floats) -> Floats:
    if not np.isfinite(mean).all():
        raise MinitronError("the inputs of a layer are too large for their covariance")
    return mean


def _product(left: Floats, right: Floats, pool: Executor) -> Floats:
    """left @ right by all threads of a pool: BLAS has one thread here."""
    found = np.empty((len(left), right.shape[1]), np.float32)
    rows = strips(0, len(left), _STRIP)
    list(pool.map(lambda part: np.matmul(left[part], right, out=found[part]), rows))
    return found

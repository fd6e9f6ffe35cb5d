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

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import MinitronError
from minitron_quant.array_backend import Doubles, Floats
from minitron_quant.gptq.cholesky import solve_positive
from minitron_quant.gptq.cross_validation import least

# shares of the mean diagonal; the search starts in the middle
RIDGES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_FIRST_TRIED = 3
HALVES = 2


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


class DriftSums:
    """The sums over both halves of a text that the targets of one stage need, float32.

    columns: of the input. rows: of the residual states; 0 where the product is not added to them.
    """

    def __init__(self, columns: int, rows: int = 0) -> None:
        self._metric = np.zeros((HALVES, columns, columns), np.float32)
        self._inputs = np.zeros((HALVES, columns, columns), np.float32)
        self._states = np.zeros((HALVES, rows, columns), np.float32)
        self._tokens = [0] * HALVES
        self._weights = [0.0] * HALVES

    def additions(
        self,
        half: int,
        full: Floats,
        ours: Floats,
        states: Floats | None,
        scale: Floats | None = None,
    ) -> Iterator[Callable[[], None]]:
        """What adds tokens of one half, to be called in any order, each of them in a thread.

        full, ours: inputs x and x̃, [tokens, columns]. states: r − r̃, [tokens, rows]. scale:
        square roots of the tokens' weights, [tokens]; None for equal ones.
        """
        self._tokens[half] += len(ours)
        self._weights[half] += len(ours) if scale is None else float(scale @ scale)
        if scale is not None:
            full, ours = full * scale[:, None], ours * scale[:, None]
            states = None if states is None else states * scale[:, None]

        def add(total: Floats, left: Floats) -> None:
            total[half] += left.T @ ours

        yield lambda: add(self._metric, ours)
        yield lambda: add(self._inputs, full - ours)
        if states is not None:
            yield lambda: add(self._states, states)

    def metric(self, halves: Sequence[int] = range(HALVES)) -> Doubles:
        """H̃ / tokens, over some halves."""
        mean = self._mean(self._metric, halves)
        if not np.isfinite(mean).all():
            raise MinitronError("the inputs of a layer are too large for their covariance")
        return mean

    def wanted(
        self,
        values: Floats,
        rows: slice | NDArray[np.intp],
        settings: DriftSettings,
        halves: Sequence[int] = range(HALVES),
    ) -> Doubles:
        """beta W Σ(x−x̃)ᵀx̃ + gamma Σ(r−r̃)ᵀx̃ per token of some rows of a weight W.

        values: those rows, [rows, columns]. rows: their numbers.
        """
        moved = settings.beta * (values @ self._mean(self._inputs, halves))
        if self.has_states:
            moved += settings.gamma * self._mean(self._states, halves)[rows]
        return moved

    def shift(self, ridge: float, pool: Executor) -> Doubles:
        """Σ(x−x̃)ᵀx̃ (H̃ + ridge)⁻¹, [columns, columns]."""
        return solve(self.metric(), self._mean(self._inputs, range(HALVES)), ridge, pool)

    def _mean(self, sums: NDArray[np.float32], halves: Sequence[int]) -> Doubles:
        total = np.zeros(sums.shape[1:])
        for half in halves:
            total += sums[half]
        total /= sum(self._weights[half] for half in halves) or 1
        return total

    @property
    def tokens(self) -> int:
        """How many were added."""
        return sum(self._tokens)

    @property
    def has_states(self) -> bool:
        """Whether the product is added to residual states."""
        return self._states.shape[1] > 0

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
) -> float:
    """The ridge whose target, fitted to the first half of the text, errs least on the second.

    values, rows: of a weight, as in `DriftSums.wanted`. The search starts at a middle ridge and
    goes where the error falls.
    """
    if settings.ridge is not None:
        return settings.ridge
    if not sums.has_halves:
        return RIDGES[-1]
    fit, judge = (sums.metric([half]) for half in range(HALVES))
    fitted, judged = (sums.wanted(values, rows, settings, [half]) for half in range(HALVES))

    def error(ridge: float) -> float:
        """Of W + D on the second half, less that of W: tr D H Dᵀ − 2 tr D wantedᵀ."""
        moved = solve(fit, fitted, ridge, pool)
        return float(((moved @ judge - 2 * judged) * moved).sum())

    return RIDGES[least(error, RIDGES, _FIRST_TRIED)]


def solve(metric: Doubles, wanted: Doubles, ridge: float, pool: Executor) -> Doubles:
    """Wanted (H̃ + ridge)⁻¹; ridge: a share of the mean diagonal."""
    mean = float(metric.diagonal().mean())
    return solve_positive(metric, ridge * mean if mean > 0 else 1.0, wanted.T, pool).T

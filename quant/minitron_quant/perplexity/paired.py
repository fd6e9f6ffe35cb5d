"""Is one level really better than another? Differences on the same chunks, with their intervals.

All models read the same chunks, and a hard chunk is hard for all of them: the difference on a chunk
varies far less than the values do. The interval is the percentile bootstrap over chunks (Efron and
Tibshirani, An Introduction to the Bootstrap, chapter 13): chunks are drawn with replacement, the
same ones for both models, and the mean difference is taken each time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 4000
CONFIDENCE = 0.95
# resamples drawn at once, so that memory does not grow with their number
_BLOCK = 500

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval; both ends are the mean for a single chunk."""

    mean: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def exp(self) -> "Difference":
        """Of a difference of logarithms the ratio: of mean nll that of the perplexities."""
        return Difference(math.exp(self.mean), math.exp(self.low), math.exp(self.high))


def paired_difference(
    a: ArrayLike, b: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """mean(a − b) over chunks, with its interval; a and b: one value per chunk, in the same order.

    With Row.chunk_nll it is ln(PPL a / PPL b), with Row.chunk_kld the difference of mean KLD. The
    same seed gives the same interval. ValueError for other shapes than two equal, nonempty rows.
    """
    return paired_differences(np.subtract(a, b)[None], resamples=resamples, seed=seed)[0]


def paired_differences(
    differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[Difference]:
    """The same for many pairs, [pairs, chunks], all of them on the same draws of chunks."""
    rows = np.asarray(differences, dtype=np.float64)
    if rows.ndim != 2 or not rows.shape[1]:
        raise ValueError(f"one row of chunks for each pair, not {rows.shape}")
    means = _resampled_means(rows, resamples, seed)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=1)
    return [
        Difference(*map(float, each)) for each in zip(rows.mean(axis=1), low, high, strict=True)
    ]


def _resampled_means(rows: Array, resamples: int, seed: int) -> Array:
    random = np.random.default_rng(seed)
    chunks = rows.shape[1]
    blocks: list[Array] = []
    for start in range(0, resamples, _BLOCK):
        count = min(_BLOCK, resamples - start)
        drawn = random.integers(0, chunks, (count, chunks))
        drawn += chunks * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * chunks).reshape(count, chunks)
        blocks.append(rows @ times.T.astype(np.float64) / chunks)
    return np.concatenate(blocks, axis=1)


@dataclass(frozen=True)
class Pair:
    """Two models on the same chunks: PPL of a / PPL of b, and KLD of a − KLD of b if both have it.

    a and b are positions in what was compared.
    """

    a: int
    b: int
    ppl_ratio: Difference
    kld: Difference | None


def compare_all(
    nll: Sequence[Sequence[float]], kld: Sequence[Sequence[float]], *, seed: int = 0
) -> list[Pair]:
    """Every pair of models, each given by its values per chunk; kld is empty for the reference."""
    pairs = [(a, b) for a in range(len(nll)) for b in range(a + 1, len(nll))]
    compared = [(a, b) for a, b in pairs if len(kld[a]) and len(kld[b])]
    ratios = _differences(nll, pairs, seed)
    divergences = _differences(kld, compared, seed)
    return [Pair(a, b, ratios[a, b].exp(), divergences.get((a, b))) for a, b in pairs]


def _differences(
    values: Sequence[Sequence[float]], pairs: Sequence[tuple[int, int]], seed: int
) -> dict[tuple[int, int], Difference]:
    if not pairs:
        return {}
    rows = [np.subtract(values[a], values[b]) for a, b in pairs]
    return dict(zip(pairs, paired_differences(rows, seed=seed), strict=True))

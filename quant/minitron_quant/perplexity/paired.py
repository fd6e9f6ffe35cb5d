"""Is one level really better than another? Differences on the same chunks, with their intervals.

All models read the same chunks, and a hard chunk is hard for all of them: the difference on a chunk
varies far less than the values do. The interval is the percentile bootstrap over chunks (Efron and
Tibshirani, An Introduction to the Bootstrap, chapter 13): chunks are drawn with replacement, the
same ones for both models, and the mean difference is taken each time.
"""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from minitron_quant.perplexity.measures import Array, Row, definition

RESAMPLES = 4000
CONFIDENCE = 0.95
# resamples drawn at once, so that memory does not grow with their number
_BLOCK = 500


@dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval; both ends are the mean for a single chunk."""

    mean: float
    low: float
    high: float

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
class ModelDifference:
    """Two models on the same chunks, with 95 % intervals, named as the keys in JSON.

    PPL of a / PPL of b, and the mean KLD of a less that of b, None where one has no KLD.
    """

    a: str
    b: str
    ppl_ratio: float = field(metadata=definition("PPL ratio", ".5f"))
    ppl_ratio_low: float = field(metadata=definition("from", ".5f"))
    ppl_ratio_high: float = field(metadata=definition("to", ".5f"))
    kld_difference: float | None = field(metadata=definition("KLD difference", "+.6f"))
    kld_difference_low: float | None = field(metadata=definition("from", "+.6f"))
    kld_difference_high: float | None = field(metadata=definition("to", "+.6f"))


def all_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Every pair of rows."""
    return list(combinations(rows, 2))


def nearest_pairs(rows: Sequence[Row], reference: Row | None) -> list[tuple[Row, Row]]:
    """Each row with the next larger file, and with the reference, one of the rows, if there is one.

    Sorted by size; each pair once.
    """
    by_size = sorted(rows, key=lambda row: row.size_mib)
    pairs = [
        (row, other)
        for row, larger in zip(by_size, [*by_size[1:], None], strict=True)
        for other in (larger, reference)
        if other is not None and other is not row
    ]
    return list({(id(a), id(b)): (a, b) for a, b in pairs}.values())


def compare_pairs(pairs: Sequence[tuple[Row, Row]], *, seed: int = 0) -> list[ModelDifference]:
    """The difference of each pair of rows that were measured on the same chunks."""
    both = [(a, b) for a, b in pairs if a.chunk_kld and b.chunk_kld]
    ratios = _differences([(a.chunk_nll, b.chunk_nll) for a, b in pairs], seed)
    klds = iter(_differences([(a.chunk_kld, b.chunk_kld) for a, b in both], seed))
    found = []
    for (a, b), ratio in zip(pairs, ratios, strict=True):
        kld = astuple(next(klds)) if a.chunk_kld and b.chunk_kld else (None, None, None)
        found.append(ModelDifference(a.model, b.model, *astuple(ratio.exp()), *kld))
    return found


def _differences(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], seed: int
) -> list[Difference]:
    rows = [np.subtract(a, b) for a, b in pairs]
    return paired_differences(rows, seed=seed) if rows else []

"""The table of a family of files: size, perplexity, and what a level costs against a reference."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from minitron_core.progress import Progress, ignore
from minitron_quant.levels import level_of
from minitron_quant.perplexity.measures import Array, Row, statistics
from minitron_quant.perplexity.multi_model import ModelScores, score_models
from minitron_quant.perplexity.paired import ModelDifference, all_pairs, compare_pairs
from minitron_quant.perplexity.perplexity import chunk_means, summarize
from minitron_quant.perplexity.settings import MeasureSettings

_MIB = 1 << 20
_FULL_PRECISION = ("F32", "F16", "BF16")


def measure(settings: MeasureSettings, progress: Progress = ignore) -> Iterator[Row]:
    """Measure the files, in the order given.

    Without a reference one after the other, only one in memory at a time. A reference comes first,
    and the others are compared with it.
    """
    reference: Row | None = None
    base: list[Array] = []
    for result in score_models(settings, progress):
        nll = [chunk.nll for chunk in result.scores]
        row = _row(result, nll)
        if settings.reference is None:
            yield row
            continue
        if reference is None:
            reference, base = row, nll
            noise = result.noise
            row = replace(row, noise=statistics(noise, base[: len(noise)]) if noise else None)
        else:
            row = replace(
                row,
                divergence=statistics(result.scores, base),
                chunk_kld=chunk_means(chunk.kld for chunk in result.scores),
            )
        yield relate(row, reference)


def relate(row: Row, reference: Row | None) -> Row:
    """The row with its size and accuracy in percent of the reference's."""
    if reference is None:
        return row
    return replace(
        row,
        size_pct=100 * (row.size_mib / reference.size_mib),
        accuracy_pct=100 * (reference.ppl / row.ppl),
    )


def _row(result: ModelScores, nll: list[Array]) -> Row:
    shards = result.shards
    ppl, error = summarize(np.concatenate(nll))
    return Row(
        model=shards[0].path.name,
        level=level_of(shards[0]),
        size_mib=sum(shard.size for shard in shards) / _MIB,
        size_pct=None,
        ppl=ppl,
        ppl_error=error,
        accuracy_pct=None,
        chunks=len(nll),
        device=result.device,
        chunk_nll=chunk_means(nll),
    )


def mark_dominated(rows: Sequence[Row]) -> list[Row]:
    """The rows, each level with the best of those that are no larger and proven to be better.

    Proven: the 95 % interval of the perplexity ratio on the same chunks lies below 1, and that of
    the KL divergence below 0 where both have one. Not the full precision, which levels are measured
    against: some come out better by chance.
    """
    comparable = [row for row in rows if len(row.chunk_nll) == rows[0].chunks > 1]
    better: dict[int, list[Row]] = {}
    pairs = all_pairs(comparable)
    for (a, b), difference in zip(pairs, compare_pairs(pairs), strict=True):
        for winner, loser, sign in ((a, b, 1), (b, a, -1)):
            if winner.size_mib <= loser.size_mib and _proven(difference, sign):
                better.setdefault(id(loser), []).append(winner)
    return [
        replace(row, dominated_by=min(better[id(row)], key=_distance).model)
        if id(row) in better and row.level not in _FULL_PRECISION
        else row
        for row in rows
    ]


def _proven(difference: ModelDifference, sign: int) -> bool:
    """Whether a (sign 1) or b (-1) is better beyond chance."""
    ends = [(math.log(difference.ppl_ratio_low), math.log(difference.ppl_ratio_high))]
    if difference.kld_difference_low is not None and difference.kld_difference_high is not None:
        ends.append((difference.kld_difference_low, difference.kld_difference_high))
    return all(max(sign * low, sign * high) < 0 for low, high in ends)


def _distance(row: Row) -> tuple[float, float]:
    """How far a row is from the full model: by its divergence, or else its perplexity."""
    return (row.divergence.kld_mean, row.ppl) if row.divergence else (0.0, row.ppl)

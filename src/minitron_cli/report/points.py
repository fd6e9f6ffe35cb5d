"""What the figure shows of a table: divergence where it was measured, else perplexity."""

from collections.abc import Sequence
from dataclasses import dataclass

from minitron_cli.report.figure import Axis, Point
from minitron_cli.units import show_size
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.paired import Difference, paired_difference

_NORMAL_95 = 1.96
# half of a typical interval: below it an asinh scale is linear
_LEAST_UNIT = 1e-5


@dataclass(frozen=True)
class Shown:
    """The points of a figure, their axis, and one sentence on what it shows."""

    points: tuple[Point, ...]
    axis: Axis
    caption: str


def shown_points(rows: Sequence[Row], reference: str) -> Shown | None:
    """The points of a table; reference: the full model's file. None where nothing was measured."""
    full = next((row for row in rows if row.model == reference), None)
    others = [row for row in rows if row is not full]
    if others and all(row.divergence and row.divergence.kld_mean > 0 for row in others):
        return _divergences(others, _called(full) if full else reference)
    if full is not None and others and all(_are_paired(row, full) for row in others):
        return _ratios(others, full)
    if not rows:
        return None
    points = tuple(_point(row, row.ppl, _of_error(row.ppl, row.ppl_error)) for row in rows)
    return Shown(points, Axis("Perplexity"), "Perplexity with its 95 % interval against size.")


def _divergences(rows: Sequence[Row], reference: str) -> Shown:
    points = []
    for row in rows:
        assert row.divergence is not None
        mean = row.divergence.kld_mean
        interval = (
            paired_difference(row.chunk_kld, [0.0] * len(row.chunk_kld))
            if len(row.chunk_kld) > 1
            else _of_error(mean, row.divergence.kld_error)
        )
        points.append(_point(row, mean, interval))
    caption = (
        f"Mean KL divergence from {reference} with its 95 % interval against size, both axes "
        f"logarithmic. {reference} itself is at 0."
    )
    return Shown(tuple(points), Axis(f"KL divergence from {reference} (nats)"), caption)


def _ratios(rows: Sequence[Row], full: Row) -> Shown:
    pairs = [(row, paired_difference(row.chunk_nll, full.chunk_nll)) for row in rows]
    points = tuple(_point(row, difference.mean, difference) for row, difference in pairs)
    halves = sorted((each.high - each.low) / 2 for _, each in pairs)
    reference = _called(full)
    caption = (
        f"The logarithm of perplexity over that of {reference}, with paired 95 % intervals, "
        f"against size. {reference} itself is at 0."
    )
    unit = max(halves[len(halves) // 2], _LEAST_UNIT)
    return Shown(points, Axis(f"ln(PPL / PPL of {reference})", "asinh", unit), caption)


def _point(row: Row, value: float, interval: Difference) -> Point:
    about = [f"{_called(row)}: {show_size(row.size_mib * 2**20)}"]
    if row.divergence is not None:
        found = row.divergence
        about.append(f"KLD {found.kld_mean:.6f} ± {found.kld_error:.6f}")
        about.append(f"same top token {found.same_top_pct:.2f} %")
    about.append(f"PPL {row.ppl:.4f} ± {row.ppl_error:.5f}")
    if row.dominated_by:
        about.append(f"{row.dominated_by} is better and no larger")
    low, high = min(interval.low, value), max(interval.high, value)
    text = "\n".join(about)
    return Point(_called(row), row.size_mib, value, low, high, text, bool(row.dominated_by))


def _of_error(mean: float, error: float) -> Difference:
    return Difference(mean, mean - _NORMAL_95 * error, mean + _NORMAL_95 * error)


def _are_paired(row: Row, full: Row) -> bool:
    return len(row.chunk_nll) == len(full.chunk_nll) > 1


def _called(row: Row) -> str:
    return row.level or row.model

"""Comparison with a baseline on held-out text: does one file really diverge less?

All files read the same chunks and are compared with the same reference, so that the difference of
their mean KL divergences has a paired interval (see paired.py).
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from minitron_core.errors import Usage
from minitron_core.hashing import file_sha256
from minitron_core.progress import Progress, ignore
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.paired import Difference, paired_difference
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure

T = TypeVar("T")


@dataclass(frozen=True)
class KldComparison:
    """The mean KL divergence of a file and of its baseline, in nats per token.

    difference: the file's less the baseline's, with its 95 % interval over the same chunks.
    """

    kld: float
    baseline_kld: float
    difference: Difference

    @property
    def better(self) -> bool:
        """Whether the file diverges less than its baseline."""
        return self.difference.mean < 0

    @property
    def change_pct(self) -> float:
        """The difference in percent of the baseline's divergence."""
        return 100 * self.difference.mean / self.baseline_kld

    @property
    def interval_pct(self) -> tuple[float, float]:
        """Both ends of the interval in percent of the baseline's divergence."""
        low, high = self.difference.low, self.difference.high
        return 100 * low / self.baseline_kld, 100 * high / self.baseline_kld

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Self:
        """The comparison that dataclasses.asdict() turned into `document`."""
        return cls(**document | {"difference": Difference(**document["difference"])})


def refuse_calibration_text(held_out: Path, calibration: Collection[str], hint: str) -> None:
    """Usage where a held-out text is a calibration text, by the SHA-256 of those."""
    if file_sha256(held_out) in calibration:
        raise Usage(f"{held_out.name} is the calibration text itself: it proves nothing", hint)


def measure_divergence(
    settings: MeasureSettings, files: Sequence[Path], progress: Progress = ignore
) -> list[Row]:
    """The rows of files compared with the settings' reference, in the order given."""
    rows = measure(replace(settings, models=tuple(files)), progress)
    return [row for row in rows if row.chunk_kld]


def mean_kld(row: Row) -> float:
    """The mean KL divergence of a row over its chunks, in nats per token."""
    return sum(row.chunk_kld) / len(row.chunk_kld)


def compare_kld(row: Row, baseline: Row) -> KldComparison:
    """A file beside its baseline; both rows come from one call of measure_divergence."""
    difference = paired_difference(row.chunk_kld, baseline.chunk_kld)
    return KldComparison(mean_kld(row), mean_kld(baseline), difference)


def read_stored(path: Path, parse: Callable[[dict[str, Any]], T]) -> T | None:
    """The result that an earlier run stored as JSON; None for anything that cannot be parsed."""
    try:
        return parse(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None

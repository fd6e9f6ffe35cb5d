"""The proof: a solved file measured on held-out text beside what else has its size.

Beside it are llama.cpp's own level of the nearest size that is not larger, and a random mix of the
same size: the first is what a user would take otherwise, the second tells luck from solving.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minitron_core.hashing import file_sha256
from minitron_core.progress import Progress, ignore
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.paired import Difference, paired_difference
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure
from minitron_quant.quantize.run import LevelResult


@dataclass(frozen=True)
class Baseline:
    """Another file of about the size: its divergence, and by how much the solved file's differs.

    difference: of the solved file less this one, with its 95 % interval over the same chunks.
    """

    level: str
    bytes: int
    kld: float
    difference: Difference

    @property
    def change_pct(self) -> float:
        """The difference in percent of this file's divergence."""
        return 100 * self.difference.mean / self.kld


@dataclass(frozen=True)
class Proof:
    """What was measured on which text; kld ± error is the solved file's, in nats per token."""

    text: str
    text_sha256: str
    file_sha256: str
    chunks: int
    kld: float
    error: float
    preset: Baseline | None
    random: Baseline

    @property
    def better(self) -> bool:
        """Whether the solved file diverges less than the preset, or there is none so small."""
        return self.preset is None or self.kld < self.preset.kld

    def document(self) -> dict[str, Any]:
        """The proof with the keys under which it is stored."""
        return asdict(self) | {"better": self.better}

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> "Proof":
        """The proof that `document` made; KeyError or TypeError where it is none."""
        values = {key: value for key, value in document.items() if key != "better"}
        for name in ("preset", "random"):
            if values[name] is not None:
                difference = Difference(**values[name]["difference"])
                values[name] = Baseline(**values[name] | {"difference": difference})
        return cls(**values)


def divergence_rows(
    settings: MeasureSettings, files: Sequence[Path], progress: Progress = ignore
) -> list[Row]:
    """The rows of files that are compared with the settings' reference."""
    rows = measure(replace(settings, models=tuple(files)), progress)
    return [row for row in rows if row.chunk_kld]


def prove(
    settings: MeasureSettings,
    solved: LevelResult,
    preset: LevelResult | None,
    random: LevelResult,
    progress: Progress = ignore,
) -> Proof:
    """Measure the files on the settings' text against its reference, chunk by chunk the same."""
    others = [random] if preset is None else [random, preset]
    ours, *rows = divergence_rows(
        settings, [solved.path, *(other.path for other in others)], progress
    )
    beside = [_beside(ours, other, row) for other, row in zip(others, rows, strict=True)]
    return Proof(
        text=settings.text.name,
        text_sha256=file_sha256(settings.text),
        file_sha256=solved.sha256,
        chunks=ours.chunks,
        kld=_mean(ours),
        error=ours.divergence.kld_error if ours.divergence else 0.0,
        preset=beside[1] if preset is not None else None,
        random=beside[0],
    )


def _beside(ours: Row, other: LevelResult, row: Row) -> Baseline:
    difference = paired_difference(ours.chunk_kld, row.chunk_kld)
    return Baseline(other.level, other.bytes, _mean(row), difference)


def _mean(row: Row) -> float:
    return sum(row.chunk_kld) / len(row.chunk_kld)

"""A mix verified on held-out text: measured beside what else has its size.

Beside it are llama.cpp's own level of the nearest size that is not larger, which a user would take
otherwise, and a random mix of the same size, which tells luck from solving; a mix with sequential
GPTQ is beside the same mix with independent GPTQ instead.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from minitron_core.hashing import file_sha256
from minitron_core.progress import Progress, ignore
from minitron_quant.perplexity.held_out import (
    KldComparison,
    compare_kld,
    mean_kld,
    measure_divergence,
    read_stored,
)
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.run import LevelResult

Other = Literal["preset", "random", "independent"]
OTHERS: tuple[Other, ...] = ("preset", "random", "independent")


@dataclass(frozen=True)
class Baseline(KldComparison):
    """The mix beside another file of about its size; `level` and `bytes` are the other file's."""

    level: str
    bytes: int


@dataclass(frozen=True)
class Verification:
    """What was measured on which text; kld ± error is the mix's, in nats per token.

    made_from: a hash over all that the mix was made from.
    """

    text: str
    text_sha256: str
    file_sha256: str
    chunks: int
    kld: float
    error: float
    preset: Baseline | None = None
    random: Baseline | None = None
    independent: Baseline | None = None
    made_from: str = ""

    @property
    def others(self) -> dict[Other, Baseline]:
        """What the mix was measured beside."""
        found: dict[Other, Baseline | None] = {name: getattr(self, name) for name in OTHERS}
        return {name: each for name, each in found.items() if each is not None}

    @property
    def replaced_by(self) -> Other | None:
        """The file that diverges least, of those that the mix does not beat; never the random."""
        found: list[tuple[float, Other]] = [
            (each.baseline_kld, name)
            for name, each in self.others.items()
            if name != "random" and not each.better
        ]
        return min(found)[1] if found else None

    def document(self) -> dict[str, Any]:
        """The verification as it is stored."""
        return asdict(self) | {"better": self.replaced_by is None}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Verification":
        """The verification that `document` describes; KeyError or TypeError for anything else."""
        values = {key: value for key, value in document.items() if key != "better"}
        for name in OTHERS:
            if values[name] is not None:
                values[name] = Baseline.from_document(values[name])
        return cls(**values)


def read_verification(path: Path, settings: MeasureSettings) -> Verification | None:
    """What an earlier run measured on the same text, of whatever file."""
    found = read_stored(path, Verification.from_document)
    if found is None or found.text_sha256 != file_sha256(settings.text):
        return None
    return found if settings.chunks.limit in (None, found.chunks) else None


def verify_mix(
    settings: MeasureSettings,
    mix: LevelResult,
    others: Mapping[Other, LevelResult],
    progress: Progress = ignore,
) -> Verification:
    """Measure the files on the settings' text against its reference, on the same chunks."""
    files = [mix.path, *(other.path for other in others.values())]
    ours, *rows = measure_divergence(settings, files, progress)
    baselines: dict[Other, Baseline] = {
        name: Baseline(**vars(compare_kld(ours, row)), level=other.level, bytes=other.bytes)
        for (name, other), row in zip(others.items(), rows, strict=True)
    }
    return Verification(
        text=settings.text.name,
        text_sha256=file_sha256(settings.text),
        file_sha256=mix.sha256,
        chunks=ours.chunks,
        kld=mean_kld(ours),
        error=ours.divergence.kld_error if ours.divergence else 0.0,
        preset=baselines.get("preset"),
        random=baselines.get("random"),
        independent=baselines.get("independent"),
    )

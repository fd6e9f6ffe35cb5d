"""A mix verified on held-out text: measured beside what else has its size.

Beside it are llama.cpp's own level of the nearest size that is not larger, which a user would take
otherwise, and a random mix of the same size, which tells luck from solving.
"""

from dataclasses import asdict, dataclass
from typing import Any

from minitron_core.hashing import file_sha256
from minitron_core.progress import Progress, ignore
from minitron_quant.perplexity.held_out import KldComparison, compare_kld, measure_divergence
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.run import LevelResult


@dataclass(frozen=True)
class Baseline(KldComparison):
    """The mix beside another file of about its size; `level` and `bytes` are the other file's."""

    level: str
    bytes: int


@dataclass(frozen=True)
class Verification:
    """What was measured on which text; kld ± error is the mix's, in nats per token."""

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
        """Whether the mix diverges less than the preset, or no preset is small enough."""
        return self.preset is None or self.preset.better

    def document(self) -> dict[str, Any]:
        """The verification as it is stored."""
        return asdict(self) | {"better": self.better}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> "Verification":
        """The verification that `document` describes; KeyError or TypeError for anything else."""
        values = {key: value for key, value in document.items() if key != "better"}
        for name in ("preset", "random"):
            if values[name] is not None:
                values[name] = Baseline.from_document(values[name])
        return cls(**values)


def verify_mix(
    settings: MeasureSettings,
    mix: LevelResult,
    preset: LevelResult | None,
    random: LevelResult,
    progress: Progress = ignore,
) -> Verification:
    """Measure the files on the settings' text against its reference, on the same chunks."""
    others = [random] if preset is None else [random, preset]
    files = [mix.path, *(other.path for other in others)]
    ours, *rows = measure_divergence(settings, files, progress)
    baselines = [
        Baseline(**vars(compare_kld(ours, row)), level=other.level, bytes=other.bytes)
        for other, row in zip(others, rows, strict=True)
    ]
    return Verification(
        text=settings.text.name,
        text_sha256=file_sha256(settings.text),
        file_sha256=mix.sha256,
        chunks=ours.chunks,
        kld=baselines[0].kld,
        error=ours.divergence.kld_error if ours.divergence else 0.0,
        preset=baselines[1] if preset is not None else None,
        random=baselines[0],
    )

"""What to measure, on which text and how."""

from dataclasses import dataclass, field
from pathlib import Path

from minitron_engine.llama.settings import EVERY_GPU, GpuLayers, Placement
from minitron_quant.chunking import ChunkSettings


@dataclass(frozen=True)
class MeasureSettings:
    """Models to measure on a text, and to compare with a reference if there is one.

    The reference may be one of the models. state: a file that keeps the scores; the same settings
    continue from it. hashes: SHA-256 of model files that are known already.
    """

    models: tuple[Path, ...]
    text: Path
    chunks: ChunkSettings
    gpu_layers: GpuLayers = "auto"
    reference: Path | None = None
    state: Path | None = None
    hashes: dict[Path, str] = field(default_factory=dict)
    placement: Placement = EVERY_GPU

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every model once: the reference first, then the others in the order given."""
        first = () if self.reference is None else (self.reference,)
        return tuple(dict.fromkeys((*first, *self.models)))

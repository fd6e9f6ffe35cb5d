"""The table of a family of files: size, perplexity, and what a level costs against a reference."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minitron_convert.gguf_file import open_shards
from minitron_engine.devices import GpuLayers
from minitron_engine.model import ModelSettings, open_model
from minitron_engine.progress import Event, Progress, ignore
from minitron_quant.chunks import ChunkSettings, chunk_text, read_text
from minitron_quant.levels import level_of_ftype
from minitron_quant.measure.perplexity import measure_perplexity

MIB = 1 << 20


@dataclass(frozen=True)
class MeasureSettings:
    """Which files to measure on which text; `reference` is one of the files, or None."""

    models: tuple[Path, ...]
    text: Path
    chunks: ChunkSettings
    gpu_layers: GpuLayers = "auto"
    reference: Path | None = None


@dataclass(frozen=True)
class Row:
    """One file. size_pct, accuracy_pct (100 · PPL of the reference / PPL) and the divergence from
    it (kld_…, same_top_…, rms_delta_p_pct) are None without a reference.
    """

    model: str
    level: str
    size_mib: float
    size_pct: float | None
    ppl: float
    ppl_error: float
    accuracy_pct: float | None
    chunks: int
    device: str
    kld_mean: float | None = None
    kld_error: float | None = None
    kld_p99: float | None = None
    kld_max: float | None = None
    same_top_pct: float | None = None
    same_top_error: float | None = None
    rms_delta_p_pct: float | None = None

    def document(self) -> dict[str, Any]:
        """The row with the keys of the JSON contract."""
        return asdict(self)


def measure(settings: MeasureSettings, progress: Progress = ignore) -> Iterator[Row]:
    """Measure the files one after the other; only one is in memory at a time.

    With a reference it is measured first, whatever its place, and its row comes first.
    """
    order = list(settings.models)
    if settings.reference is not None:
        order = [settings.reference, *(path for path in order if path != settings.reference)]
    reference: Row | None = None
    for number, path in enumerate(order):
        row = _measure_one(path, settings, _count_models(progress, number, len(order)))
        if number == 0 and settings.reference is not None:
            reference = row
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


def _count_models(progress: Progress, number: int, models: int) -> Progress:
    # one bar over all files: the chunks of the file in work count as a part of one
    def listen(event: Event) -> None:
        progress(
            Event("perplexity", number + event.done / event.total, models, "models", event.detail)
        )

    return listen


def _measure_one(path: Path, settings: MeasureSettings, progress: Progress) -> Row:
    shards = open_shards(path)
    n_ctx = settings.chunks.context().n_ctx
    with open_model(ModelSettings(path, settings.gpu_layers, n_ctx)) as model:
        chunks = chunk_text(model, read_text(settings.text), settings.chunks, settings.text.name)

        def listen(event: Event) -> None:
            progress(replace(event, detail=f"{path.name}: {event.detail}"))

        result = measure_perplexity(model, chunks, settings.chunks, listen)
        return Row(
            model=path.name,
            level=level_of_ftype(shards[0].get("general.file_type")),
            size_mib=sum(shard.size for shard in shards) / MIB,
            size_pct=None,
            ppl=result.ppl,
            ppl_error=result.error,
            accuracy_pct=None,
            chunks=result.chunks,
            device=model.device,
        )


def sort_by_size(rows: Sequence[Row]) -> list[Row]:
    """Smallest first, as the published table has them."""
    return sorted(rows, key=lambda row: row.size_mib)

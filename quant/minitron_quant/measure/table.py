"""The table of a family of files: size, perplexity, and what a level costs against a reference."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from minitron_engine.devices import GpuLayers
from minitron_engine.model import ModelSettings, open_model
from minitron_engine.progress import Event, Progress, ignore
from minitron_quant.chunks import ChunkSettings, chunk_text, read_text
from minitron_quant.levels import level_of_ftype
from minitron_quant.measure.divergence import Divergence, statistics
from minitron_quant.measure.perplexity import chunk_means, measure_perplexity, summarize
from minitron_quant.measure.together import TogetherSettings, compare
from minitron_quant.models import open_model_files

MIB = 1 << 20
_DIVERGENCE_KEYS = tuple(each.name for each in fields(Divergence))


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
    """One file. size_pct, accuracy_pct (100 · PPL of the reference / PPL) and the divergence are
    None without a reference. chunk_nll and chunk_kld: the means of each chunk, for measure.paired.
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
    divergence: Divergence | None = None
    chunk_nll: tuple[float, ...] = field(default=(), compare=False, repr=False)
    chunk_kld: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def document(self) -> dict[str, Any]:
        """The row with the keys of the JSON contract, those of the divergence among them."""
        document = asdict(self)
        del document["chunk_nll"], document["chunk_kld"]
        divergence = document.pop("divergence") or dict.fromkeys(_DIVERGENCE_KEYS)
        # the row's own perplexity stands for the divergence's: they are the same number
        return document | {k: v for k, v in divergence.items() if k not in document}

    @classmethod
    def of_document(cls, document: dict[str, Any]) -> "Row":
        """The row that `document` made."""
        own = {each.name for each in fields(cls)} - {"divergence"}
        values = {key: value for key, value in document.items() if key in own}
        if document["kld_mean"] is not None:
            values["divergence"] = Divergence(**{key: document[key] for key in _DIVERGENCE_KEYS})
        return cls(**values)


def measure(settings: MeasureSettings, progress: Progress = ignore) -> Iterator[Row]:
    """Measure the files, in the order given.

    Without a reference one after the other, only one in memory at a time. With one it comes first,
    and the others are compared with it side by side.
    """
    if settings.reference is None:
        for number, path in enumerate(settings.models):
            yield _measure_one(path, settings, _part_of(progress, number, len(settings.models)))
        return
    others = tuple(path for path in settings.models if path != settings.reference)
    if not others:
        alone = _measure_one(settings.reference, settings, _part_of(progress, 0, 1))
        yield relate(alone, alone)
        return
    together = TogetherSettings(
        settings.reference, others, settings.text, settings.chunks, settings.gpu_layers
    )
    reference: Row | None = None
    for result in compare(together, progress):
        ppl, error = summarize(np.concatenate(result.nll))
        row = _row(result.path, ppl, error, chunk_means(result.nll), result.device)
        reference = reference or row
        divergence = statistics(result.scores) if result.scores else None
        kld = chunk_means(chunk.kld for chunk in result.scores)
        yield relate(replace(row, divergence=divergence, chunk_kld=kld), reference)


def relate(row: Row, reference: Row | None) -> Row:
    """The row with its size and accuracy in percent of the reference's."""
    if reference is None:
        return row
    return replace(
        row,
        size_pct=100 * (row.size_mib / reference.size_mib),
        accuracy_pct=100 * (reference.ppl / row.ppl),
    )


def _part_of(progress: Progress, number: int, models: int) -> Progress:
    # one bar over all files: the chunks of the file in work count as a part of one
    def listen(event: Event) -> None:
        done = number + event.done / event.total
        progress(Event("perplexity", done, models, "models", event.detail))

    return listen


def _measure_one(path: Path, settings: MeasureSettings, progress: Progress) -> Row:
    open_model_files(path)
    n_ctx = settings.chunks.context().n_ctx
    with open_model(ModelSettings(path, settings.gpu_layers, n_ctx)) as model:
        chunks = chunk_text(model, read_text(settings.text), settings.chunks, settings.text.name)

        def listen(event: Event) -> None:
            progress(replace(event, detail=f"{path.name}: {event.detail}"))

        result = measure_perplexity(model, chunks, settings.chunks, listen)
        return _row(path, result.ppl, result.error, result.chunk_nll, model.device)


def _row(path: Path, ppl: float, error: float, chunk_nll: tuple[float, ...], device: str) -> Row:
    shards = open_model_files(path)
    return Row(
        model=path.name,
        level=level_of_ftype(shards[0].get("general.file_type")),
        size_mib=sum(shard.size for shard in shards) / MIB,
        size_pct=None,
        ppl=ppl,
        ppl_error=error,
        accuracy_pct=None,
        chunks=len(chunk_nll),
        device=device,
        chunk_nll=chunk_nll,
    )


def sort_by_size(rows: Sequence[Row]) -> list[Row]:
    """Smallest first, as the published table has them."""
    return sorted(rows, key=lambda row: row.size_mib)

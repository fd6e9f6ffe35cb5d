"""Collect an importance matrix: run texts through a model and watch every matrix product."""

from dataclasses import dataclass
from pathlib import Path

from minitron_engine.context import open_context
from minitron_engine.errors import MinitronError, Usage
from minitron_engine.model import Model, Tokens
from minitron_engine.progress import Event, Progress, ignore
from minitron_quant.chunks import ChunkSettings, chunk_text, decode_chunks, read_text
from minitron_quant.imatrix.collector import MIN_TOKENS, Collector
from minitron_quant.imatrix.matrix import ImportanceMatrix
from minitron_quant.imatrix.origin import origin_of
from minitron_quant.imatrix.reduction import Precision, Reducer


@dataclass(frozen=True)
class CollectSettings:
    """What to run; texts are used one after the other, each chunked for itself.

    plain: only what llama-imatrix collects, neither means nor an origin. sums: see `Reducer`.
    """

    texts: tuple[Path, ...]
    chunks: ChunkSettings = ChunkSettings()
    process_output: bool = False
    plain: bool = False
    sums: Precision = "float32"


def collect(
    model: Model, settings: CollectSettings, progress: Progress = ignore
) -> ImportanceMatrix:
    """Run the texts through the model and return the statistics of every weight's input."""
    chunked = _chunk_texts(model, settings)
    collector = Collector(Reducer(settings.sums, not settings.plain), settings.process_output)
    total = sum(len(chunks) for chunks in chunked)
    matrix = ImportanceMatrix(
        collector.entries,
        [str(path) for path in settings.texts],
        chunk_size=settings.chunks.n_ctx,
        origin=None if settings.plain else origin_of(model.path, settings.texts),
    )
    done = 0
    with open_context(model, settings.chunks.context(), collector.hook) as context:
        for path, chunks in zip(settings.texts, chunked, strict=True):
            # logits of every token: without them llama.cpp drops rows before the last layer's FFN
            for start, group in decode_chunks(context, chunks, settings.chunks, 0):
                collector.check()
                progress(Event("imatrix", done + start + len(group), total, "chunks", path.name))
            done += len(chunks)
    if not matrix.entries:
        raise MinitronError(
            "no matrix product was seen: the model has no weights to calibrate, "
            f"or chunks are shorter than {MIN_TOKENS} tokens"
        )
    # llama-imatrix counts the chunks by the tokens seen: rows of tiny products are left out
    most = max(int(entry.counts.max()) for entry in matrix.entries.values())
    matrix.chunk_count = most // settings.chunks.n_ctx
    return matrix


def _chunk_texts(model: Model, settings: CollectSettings) -> list[Tokens]:
    if settings.chunks.n_ctx < MIN_TOKENS:
        raise Usage(f"--ctx must be at least {MIN_TOKENS} to collect an importance matrix")
    chunked, left = [], settings.chunks.limit
    for path in settings.texts:
        if left == 0:
            break
        chunks = chunk_text(model, read_text(path), settings.chunks, path.name)[:left]
        left = None if left is None else left - len(chunks)
        chunked.append(chunks)
    # texts that the limit leaves no chunk for count as empty
    chunked += [chunked[0][:0]] * (len(settings.texts) - len(chunked))
    return chunked

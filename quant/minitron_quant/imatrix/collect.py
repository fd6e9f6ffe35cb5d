"""Collect an importance matrix: run texts through a model and sum the input of every product."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_core import stop
from minitron_core.cpu_limits import default_threads
from minitron_core.errors import MinitronError, Usage
from minitron_core.hashing import file_sha256
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.context import Logits
from minitron_engine.llama.library import LLAMA_CPP_COMMIT
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.chunking import ChunkSettings, PartDone, chunk_text, groups, read_text
from minitron_quant.imatrix.accumulator import Accumulator, Precision
from minitron_quant.imatrix.collector import MIN_TOKENS, Collector, is_layer_weight
from minitron_quant.imatrix.matrix import ImportanceMatrix
from minitron_quant.imatrix.parallel_contexts import ChunkDecoder, open_decoder
from minitron_quant.imatrix.state import Dependencies, Resume, StateFile, state_path
from minitron_quant.model_files import OUTPUT, open_model_files
from minitron_quant.perplexity.perplexity import negative_log_likelihood, summarize
from minitron_quant.provenance import calibration_origin


@dataclass(frozen=True)
class CollectSettings:
    """What to run; texts are used one after the other, each chunked on its own.

    plain: only what llama-imatrix collects, without means and origin. sums: see `Accumulator`.
    perplexity: also score the texts as llama-perplexity does; costs the vocabulary matrix.
    """

    texts: tuple[Path, ...]
    chunks: ChunkSettings = ChunkSettings()
    process_output: bool = False
    plain: bool = False
    sums: Precision = "float32"
    perplexity: bool = False


@dataclass(frozen=True)
class ResumePolicy:
    """Where to save the state of an unfinished run, beside `output`, and whether to continue it.

    every: chunks between two saves; None for ten seconds or so.
    """

    output: Path
    resume: Resume = "restart"
    every: int | None = None


@dataclass(frozen=True)
class Collected:
    """The matrix, and the perplexity of the texts with its error, if requested.

    resumed: chunks that an earlier run had finished. device: where the layers ran.
    """

    matrix: ImportanceMatrix
    perplexity: tuple[float, float] | None
    resumed: int
    device: str


def collect(
    model: Model, settings: CollectSettings, progress: Progress = ignore
) -> ImportanceMatrix:
    """Run the texts through the model and return the statistics of every weight's input."""
    return calibrate(model, settings, progress).matrix


def calibrate(
    model: Model,
    settings: CollectSettings,
    progress: Progress = ignore,
    keep: ResumePolicy | None = None,
) -> Collected:
    """`collect` with perplexity and saved state, as requested.

    With `keep` a killed run can continue; its state stays until `remove_state`. Raises Usage (text
    too short), MinitronError (inputs that are not finite, the state of another run).
    """
    run = _Run(model, settings, keep)
    resumed = run.saved.chunks
    run.all_chunks(progress)
    entries = run.saved.entries
    if not entries:
        raise MinitronError(
            "no matrix product was seen: the model has no weights to calibrate, "
            f"or chunks are shorter than {MIN_TOKENS} tokens"
        )
    # llama-imatrix counts the chunks by the tokens seen: rows of tiny products are left out
    most = max(int(entry.counts.max()) for entry in entries.values())
    matrix = ImportanceMatrix(
        entries,
        [str(path) for path in settings.texts],
        most // settings.chunks.n_ctx,
        settings.chunks.n_ctx,
        None if settings.plain else calibration_origin(model.path, settings.texts),
    )
    scores = run.saved.nll
    perplexity = summarize(np.concatenate(scores)) if scores else None
    return Collected(matrix, perplexity, resumed, model.device)


def remove_state(output: Path) -> None:
    """Remove the state of an output that is finished."""
    state_path(output).unlink(missing_ok=True)


class _Run:
    """One run over the texts, from where an earlier run stopped."""

    def __init__(self, model: Model, settings: CollectSettings, keep: ResumePolicy | None) -> None:
        self._model, self._settings = model, settings
        self._texts = _chunk_texts(model, settings)
        self._state = StateFile(
            state_path(keep.output) if keep else None,
            lambda: _dependencies(model, settings),
            keep.every if keep else None,
        )
        self.saved = self._state.load(keep.resume if keep else "restart")

    def all_chunks(self, progress: Progress) -> None:
        """Decode the rest group by group; save from time to time."""
        settings = self._settings
        accumulator = Accumulator(settings.sums, means=not settings.plain)
        selects = _with_output if settings.process_output else is_layer_weight
        collector = Collector(accumulator, self.saved.entries, selects, settings.perplexity)
        total = sum(len(chunks) for chunks in self._texts)
        threads = settings.chunks.threads or default_threads()
        progress(Event("imatrix", self.saved.chunks, total, "chunks"))
        with (
            stop.keeping(lambda: self._state.kept(total)),
            ThreadPoolExecutor(threads, thread_name_prefix="score") as pool,
            open_decoder(
                self._model, settings.chunks, self._texts, collector, settings.perplexity
            ) as decoder,
        ):
            for name, tokens, logits in self._groups(decoder, progress):
                if settings.perplexity:
                    self._score(pool, tokens, logits)
                self.saved.chunks += len(tokens)
                if self._state.due(self.saved):
                    decoder.wait()
                    self._state.save(self.saved)
                progress(Event("imatrix", self.saved.chunks, total, "chunks", name))
            decoder.wait()

    def _groups(
        self, decoder: ChunkDecoder, progress: Progress
    ) -> Iterator[tuple[str, Tokens, list[Logits]]]:
        """Of each group the name of its text, its tokens [chunks, n_ctx] and its logits."""
        before = 0
        for path, chunks in zip(self._settings.texts, self._texts, strict=True):
            first = min(max(self.saved.chunks - before, 0), len(chunks))
            for start, group in groups(self._model, chunks, self._settings.chunks, first):
                listen = self._within(before + start, len(group), path.name, progress)
                logits = decoder.decode(group, listen)
                yield path.name, chunks[start : start + len(group)], logits
            before += len(chunks)

    def _within(self, done: int, count: int, name: str, progress: Progress) -> PartDone:
        """Reports a share of a group of `count` chunks, which minutes pass for in a large model."""
        total = sum(len(chunks) for chunks in self._texts)
        return lambda share: progress(Event("imatrix", done + share * count, total, "chunks", name))

    def _score(self, pool: ThreadPoolExecutor, tokens: Tokens, logits: list[Logits]) -> None:
        first = self._settings.chunks.first_output
        for chunk, rows in zip(tokens, logits, strict=True):
            nll = negative_log_likelihood(pool, rows[first:-1], chunk[first + 1 :])
            self.saved.nll.append(nll)


def _with_output(name: str) -> bool:
    return is_layer_weight(name) or name == OUTPUT


def _dependencies(model: Model, settings: CollectSettings) -> Dependencies:
    """Everything that the sums depend on, named as a user knows it."""
    return {
        "llama.cpp": LLAMA_CPP_COMMIT,
        "model": [file_sha256(shard.path) for shard in open_model_files(model.path)],
        "text": [file_sha256(path) for path in settings.texts],
        "device": model.device,
        "--ctx": settings.chunks.n_ctx,
        "--batch": settings.chunks.n_batch,
        "--chunks": settings.chunks.limit,
        "--parse-special": settings.chunks.parse_special,
        "--process-output": settings.process_output,
        "--plain": settings.plain,
        "--sums": settings.sums,
        "--ppl": settings.perplexity,
    }


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
    # texts beyond the limit count as empty
    chunked += [chunked[0][:0]] * (len(settings.texts) - len(chunked))
    return chunked

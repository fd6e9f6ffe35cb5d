"""One pass over a text with models in memory: a chunk's logits are scored and forgotten."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minitron_convert.gguf_file import Gguf, KeyValue
from minitron_engine.context import Context, ContextSettings, Logits, open_context
from minitron_engine.devices import GpuLayers
from minitron_engine.errors import Unsupported
from minitron_engine.model import Model, ModelSettings, Tokens, open_model
from minitron_engine.work_memory import aligning_hook
from minitron_quant.chunks import ChunkSettings, check_trained_context, decode_chunks
from minitron_quant.measure.divergence import (
    ReferenceChunk,
    TokenScores,
    compare_chunk,
    reference_chunk,
)
from minitron_quant.measure.overlap import Job, Jobs, Score, scored
from minitron_quant.measure.perplexity import negative_log_likelihood
from minitron_quant.measure.reference_cache import ReferenceCache
from minitron_quant.measure.state import State


@dataclass(frozen=True)
class Opened:
    """A model in memory with a context for `chunks`, and the key of its scores."""

    path: Path
    key: str
    model: Model
    context: Context
    chunks: ChunkSettings

    def logits(self, part: Tokens) -> Iterator[Logits]:
        """The scored rows of every chunk, [rows, n_vocab]: views, valid until the next decode."""
        for _, group in decode_chunks(self.context, part, self.chunks, self.chunks.first_output):
            yield from (logits[:-1] for logits in group)


@dataclass(frozen=True)
class Pass:
    """What all parts of a pass share: the chunks of the text, [chunks, n_ctx], threads, results.

    total: how many chunks there are without a limit. overlap: score one batch while the next one
    is decoded.
    """

    tokens: Tokens
    total: int
    chunks: ChunkSettings
    pool: ThreadPoolExecutor
    state: State
    overlap: bool
    _base: list[ReferenceChunk] = field(default_factory=list)
    _space: list[NDArray[np.float32]] = field(default_factory=list)

    def starts(self, keys: Sequence[str]) -> list[int]:
        """The first chunks of the parts that are not known of every one of the keys."""
        return [
            start
            for start in range(0, len(self.tokens), self.chunks.n_seq)
            if not all(self.known(key, start) for key in keys)
        ]

    def part(self, start: int) -> Tokens:
        """The chunks that are decoded together."""
        return self.tokens[start : start + self.chunks.n_seq]

    def known(self, key: str, start: int) -> bool:
        """Whether a part was scored before."""
        return self.state.has(key, start, len(self.part(start)))

    def targets(self, start: int) -> Tokens:
        """The tokens that the scored rows of a part predict, [chunks, rows]."""
        return self.part(start)[:, self.chunks.first_output + 1 :]

    def refer(self, opened: Opened, start: int, cache: ReferenceCache | None = None) -> Job:
        """The reference on a part: what jobs after it are compared with. A cache keeps it, too."""
        targets = self.targets(start)

        def score(chunks: Iterable[Logits]) -> list[TokenScores]:
            self._base.clear()
            for number, logits in enumerate(chunks):
                if number == len(self._space):
                    self._space.append(np.empty_like(logits))
                space = self._space[number]
                self._base.append(reference_chunk(self.pool, logits, targets[number], space))
            if cache is not None:
                cache.put(start, self._base)
            return [TokenScores.alone(chunk.nll) for chunk in self._base]

        return self._job(opened, start, score)

    def compare(
        self, models: Sequence[Opened], start: int, cache: ReferenceCache | None = None
    ) -> Jobs:
        """Models on a part, as far as it is not known of them, against the reference.

        That is what the cache has of it, or else what the job `refer` before has left.
        """
        unknown = [opened for opened in models if not self.known(opened.key, start)]
        targets = self.targets(start)

        def load_and_score(chunks: Iterable[Logits]) -> list[TokenScores]:
            if cache is not None:
                self._base[:] = cache.get(start)
            return score(chunks)

        def score(chunks: Iterable[Logits]) -> list[TokenScores]:
            return [
                compare_chunk(self.pool, *each)
                for each in zip(chunks, targets, self._base, strict=True)
            ]

        for number, opened in enumerate(unknown):
            yield self._job(opened, start, score if number else load_and_score)

    def alone(self, opened: Opened, start: int) -> Job:
        """A model on a part, compared with nothing."""
        targets = self.targets(start)

        def score(chunks: Iterable[Logits]) -> list[TokenScores]:
            return [
                TokenScores.alone(negative_log_likelihood(self.pool, *each))
                for each in zip(chunks, targets, strict=True)
            ]

        return self._job(opened, start, score)

    def _job(self, opened: Opened, start: int, score: Score) -> Job:
        return Job(opened.key, start, opened.logits(self.part(start)), score)

    def run(self, jobs: Jobs) -> Iterator[Job]:
        """Do jobs in order and keep their scores; gives each one when it is done."""
        for job, scores in scored(jobs, self.overlap):
            if not self.known(job.key, job.start):
                self.state.put(job.key, job.start, scores)
            yield job

    def finish(self, jobs: Jobs) -> None:
        """Do all jobs."""
        for _ in self.run(jobs):
            pass


def open_for(
    path: Path,
    key: str,
    chunks: ChunkSettings,
    gpu_layers: GpuLayers,
    stack: ExitStack,
    beside: Model | None = None,
) -> Opened:
    """Open a model and a context that takes as many chunks at once as the settings say.

    beside: see ModelSettings.
    """
    context = chunks.context()
    settings = ModelSettings(path, gpu_layers, context=context, beside=beside)
    model = stack.enter_context(open_model(settings))
    check_trained_context(model, chunks.n_ctx)
    return Opened(path, key, model, stack.enter_context(_open_context(model, context)), chunks)


def other_shape(opened: Opened, key: str, stack: ExitStack) -> Opened:
    """The same model once more, decoding in batches of another size: the sums round differently."""
    chunks = opened.chunks
    # llama.cpp computes at most 512 tokens at once, however large the batch
    size = chunks.n_ctx if chunks.n_seq > 1 else max(1, min(chunks.n_ctx, 512) // 2)
    other = replace(chunks, n_batch=size)
    context = stack.enter_context(_open_context(opened.model, other.context()))
    return Opened(opened.path, key, opened.model, context, other)


def _open_context(model: Model, settings: ContextSettings) -> AbstractContextManager[Context]:
    # on a GPU a hook would have llama.cpp wait for every part of a graph
    hook = None if model.offloaded else aligning_hook()
    return open_context(model, settings, hook)


def same_vocabulary(one: Gguf, other: Gguf) -> bool:
    """Whether two models of one architecture agree in everything that llama.cpp reads of tokens."""

    def facts(file: Gguf) -> dict[str, KeyValue]:
        return {
            key: entry
            for key, entry in file.metadata.items()
            if key == "general.architecture" or key.startswith("tokenizer.")
        }

    return facts(one) == facts(other)


def check_vocabulary(reference: Gguf, model: Gguf) -> None:
    """Unsupported where the tokens of two models are not the same: nothing can be compared."""
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if reference.metadata.get(key) != model.metadata.get(key):
            raise Unsupported(
                f"{model.path.name} has another vocabulary than the reference: nothing to compare",
                "the reference must be the same model at a higher precision",
            )

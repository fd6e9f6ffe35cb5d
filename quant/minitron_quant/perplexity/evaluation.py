"""One pass over a text with models in memory: a chunk's logits are scored and forgotten."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import Unsupported
from minitron_core.gguf import Gguf, KeyValue
from minitron_engine.llama.context import Context, ContextSettings, Logits, open_context
from minitron_engine.llama.devices import GpuLayers
from minitron_engine.llama.model import Model, ModelSettings, Tokens, open_model
from minitron_engine.process.malloc_alignment import aligning_hook
from minitron_quant.chunking import ChunkSettings, check_trained_context, decode_chunks
from minitron_quant.perplexity.divergence import (
    ReferenceChunk,
    TokenScores,
    compare_chunk,
    reference_chunk,
)
from minitron_quant.perplexity.perplexity import negative_log_likelihood
from minitron_quant.perplexity.reference_cache import ReferenceCache
from minitron_quant.perplexity.scheduler import Job, Jobs, Score, Way, scored
from minitron_quant.perplexity.state import State


class Source(Protocol):
    """What gives logits of chunks: the key of their scores, and a lock on the context used."""

    @property
    def key(self) -> str: ...

    @property
    def lock(self) -> threading.Lock: ...

    def logits(self, part: Tokens) -> Generator[Logits]:
        """The scored rows of every chunk, [rows, n_vocab]: views, valid until the next decode."""


@dataclass(frozen=True)
class Opened:
    """A model in memory with a context for `chunks`, and the key of its scores."""

    path: Path
    key: str
    model: Model
    context: Context
    chunks: ChunkSettings
    lock: threading.Lock = field(default_factory=threading.Lock)

    def logits(self, part: Tokens) -> Generator[Logits]:
        """See Source."""
        for _, group in decode_chunks(self.context, part, self.chunks, self.chunks.first_output):
            yield from (logits[:-1] for logits in group)

    @contextmanager
    def again(self, chunks: ChunkSettings) -> Iterator["Opened"]:
        """The same model with another context."""
        with _open_context(self.model, chunks.context()) as context:
            yield Opened(self.path, self.key, self.model, context, chunks)


@dataclass(frozen=True)
class OtherShape:
    """A model once more, decoding in batches of another size: the sums round differently.

    Its context is there while logits are computed.
    """

    opened: Opened
    key: str
    lock: threading.Lock = field(default_factory=threading.Lock)

    def logits(self, part: Tokens) -> Generator[Logits]:
        """See Source."""
        chunks = self.opened.chunks
        # llama.cpp computes at most 512 tokens at once, however large the batch
        size = chunks.n_ctx if chunks.n_seq > 1 else max(1, min(chunks.n_ctx, 512) // 2)
        with self.opened.again(replace(chunks, n_batch=size)) as other:
            yield from other.logits(part)


class Base:
    """The reference's predictions of a part, which other models are compared with."""

    def __init__(self) -> None:
        self._chunks: list[ReferenceChunk] = []
        self._made = threading.Event()

    @contextmanager
    def making(self) -> Iterator[list[ReferenceChunk]]:
        """Around what fills the list; whoever waits for it goes on, also after an error."""
        try:
            yield self._chunks
        finally:
            self._made.set()

    def chunks(self) -> list[ReferenceChunk]:
        """Waits until they are there."""
        self._made.wait()
        return self._chunks


@dataclass
class Pass:
    """What all parts of a pass share: the chunks of the text, [chunks, n_ctx], and the results.

    total: how many chunks there are without a limit. way: how the jobs are done.
    """

    tokens: Tokens
    total: int
    chunks: ChunkSettings
    state: State
    way: Way
    _base: Base = field(default_factory=Base)
    _spaces: deque[list[NDArray[np.float32]]] = field(default_factory=deque)

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

    def refer(self, source: Source, start: int, cache: ReferenceCache | None = None) -> Job:
        """The reference on a part: what jobs after it are compared with. A cache keeps it, too."""
        targets, space = self.targets(start), self._space()
        base = self._base = Base()

        def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
            with base.making() as made:
                for number, logits in enumerate(chunks):
                    if number == len(space):
                        space.append(np.empty_like(logits))
                    made.append(reference_chunk(pool, logits, targets[number], space[number]))
            if cache is not None:
                cache.put(start, made)
            return [TokenScores.alone(chunk.nll) for chunk in made]

        return self._job(source, start, score)

    def _space(self) -> list[NDArray[np.float32]]:
        """Memory for a reference's probabilities that no job on its way uses any more."""
        if len(self._spaces) < self.way.at_once:
            self._spaces.append([])
        self._spaces.rotate()
        return self._spaces[0]

    def compare(
        self, sources: Sequence[Source], start: int, cache: ReferenceCache | None = None
    ) -> Jobs:
        """Models on a part, as far as it is not known of them, against the reference.

        That is what the cache has of it, or else what the job `refer` before makes.
        """
        unknown = [source for source in sources if not self.known(source.key, start)]
        targets = self.targets(start)
        base = self._base if cache is None else Base()

        def load_and_score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
            assert cache is not None
            with base.making() as made:
                made += cache.get(start)
            return score(pool, chunks)

        def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
            return [
                compare_chunk(pool, *each)
                for each in zip(chunks, targets, base.chunks(), strict=True)
            ]

        for number, source in enumerate(unknown):
            loads = cache is not None and number == 0
            yield self._job(source, start, load_and_score if loads else score)

    def alone(self, source: Source, start: int) -> Job:
        """A model on a part, compared with nothing."""
        targets = self.targets(start)

        def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
            return [
                TokenScores.alone(negative_log_likelihood(pool, *each))
                for each in zip(chunks, targets, strict=True)
            ]

        return self._job(source, start, score)

    def _job(self, source: Source, start: int, score: Score) -> Job:
        return Job(source.key, start, source.logits(self.part(start)), score, source.lock)

    def finish(self, jobs: Jobs, told: Callable[[Job], None] = lambda _job: None) -> None:
        """Do jobs in order and keep their scores; tells of each one when it is done."""
        with closing(scored(jobs, self.way)) as done:
            for job, scores in done:
                if not self.known(job.key, job.start):
                    self.state.put(job.key, job.start, scores)
                told(job)


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

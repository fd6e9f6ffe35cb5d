"""Chunks of a text evaluated by models in memory: logits are scored at once and never kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_engine.llama.context import Logits
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity.divergence import (
    ReferenceChunk,
    TokenScores,
    compare_chunk,
    reference_chunk,
)
from minitron_quant.perplexity.loaded_model import LogitsSource
from minitron_quant.perplexity.perplexity import negative_log_likelihood
from minitron_quant.perplexity.scheduler import Jobs, Schedule, Scorer, ScoringJob, run_jobs
from minitron_quant.perplexity.state import State

# memory for the probabilities of the chunks of a group, [rows, n_vocab] each; it grows as needed
Buffers = list[NDArray[np.float32]]
Keep = Callable[[list[ReferenceChunk]], None]


class ReferenceScores:
    """The reference's predictions of a group, passed to all that compare with them.

    Nothing else keeps them: they are forgotten with the last comparison. chunks: those that a cache
    had; otherwise they are set by `computing`.
    """

    def __init__(self, chunks: list[ReferenceChunk] | None = None) -> None:
        self._chunks: Future[list[ReferenceChunk]] = Future()
        if chunks is not None:
            self._chunks.set_result(chunks)

    @contextmanager
    def computing(self) -> Iterator[list[ReferenceChunk]]:
        """Fill the list in the block; all that wait get it, or the error that ends the block."""
        chunks: list[ReferenceChunk] = []
        try:
            yield chunks
        except BaseException as error:
            self._chunks.set_exception(error)
            raise
        self._chunks.set_result(chunks)

    def chunks(self) -> list[ReferenceChunk]:
        """Wait until they are there; raises what computing them raised."""
        return self._chunks.result()


@dataclass(frozen=True)
class PerplexityScorer:
    """Scores a model by itself. targets: the tokens that the rows predict, [chunks, rows]."""

    targets: Tokens

    def __call__(self, pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        pairs = zip(chunks, self.targets, strict=True)
        return [TokenScores.of_nll(negative_log_likelihood(pool, *pair)) for pair in pairs]


@dataclass(frozen=True)
class ReferenceScorer:
    """Scores the reference, and computes what other models are compared with; `keep` gets it."""

    targets: Tokens
    scores: ReferenceScores
    buffers: Buffers
    keep: Keep | None

    def __call__(self, pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        with self.scores.computing() as made:
            for number, (logits, targets) in enumerate(zip(chunks, self.targets, strict=True)):
                if number == len(self.buffers):
                    self.buffers.append(np.empty_like(logits))
                made.append(reference_chunk(pool, logits, targets, self.buffers[number]))
        if self.keep is not None:
            self.keep(made)
        return [TokenScores.of_nll(chunk.nll) for chunk in made]


@dataclass(frozen=True)
class DivergenceScorer:
    """Scores a model against the reference, computed beside it or read from a cache."""

    targets: Tokens
    reference: ReferenceScores

    def __call__(self, pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        inputs = zip(chunks, self.targets, self.reference.chunks(), strict=True)
        return [compare_chunk(pool, *each) for each in inputs]


@dataclass(frozen=True)
class ChunkEvaluator:
    """Evaluates groups of chunks, those decoded together, by the index of their first chunk.

    tokens: [chunks, n_ctx]. total: how many chunks the whole text has. state: takes the scores.
    """

    tokens: Tokens
    total: int
    chunks: ChunkSettings
    state: State
    schedule: Schedule

    def unknown_starts(self, keys: Sequence[str]) -> list[int]:
        """The groups that the state does not have of every one of the keys."""
        return [
            start
            for start in range(0, len(self.tokens), self.chunks.n_seq)
            if not all(self.is_known(key, start) for key in keys)
        ]

    def group(self, start: int) -> Tokens:
        """The chunks that are decoded together."""
        return self.tokens[start : start + self.chunks.n_seq]

    def is_known(self, key: str, start: int) -> bool:
        """Whether the state has the scores of a group."""
        return self.state.has(key, start, len(self.group(start)))

    def score(self, source: LogitsSource, start: int) -> ScoringJob:
        """A model on a group, by itself."""
        return self._job(source, start, PerplexityScorer(self._targets(start)))

    def score_reference(
        self,
        source: LogitsSource,
        start: int,
        scores: ReferenceScores,
        buffers: Buffers,
        keep: Keep | None = None,
    ) -> ScoringJob:
        """The reference on a group; it fills `scores`, whose probabilities lie in `buffers`."""
        scorer = ReferenceScorer(self._targets(start), scores, buffers, keep)
        return self._job(source, start, scorer)

    def compare(
        self, sources: Sequence[LogitsSource], start: int, reference: ReferenceScores
    ) -> Iterator[ScoringJob]:
        """Models on a group against the reference, but for those that the state has."""
        scorer = DivergenceScorer(self._targets(start), reference)
        for source in sources:
            if not self.is_known(source.key, start):
                yield self._job(source, start, scorer)

    def run(self, jobs: Jobs, on_done: Callable[[ScoringJob], None] = lambda _job: None) -> None:
        """Run jobs in order, put new scores into the state and call `on_done` after each job."""
        with closing(run_jobs(jobs, self.schedule)) as done:
            for job, scores in done:
                if not self.is_known(job.key, job.start):
                    self.state.put(job.key, job.start, scores)
                on_done(job)

    def _targets(self, start: int) -> Tokens:
        return self.group(start)[:, self.chunks.first_output + 1 :]

    def _job(self, source: LogitsSource, start: int, scorer: Scorer) -> ScoringJob:
        return ScoringJob(source.key, start, source.logits(self.group(start)), scorer, source.lock)

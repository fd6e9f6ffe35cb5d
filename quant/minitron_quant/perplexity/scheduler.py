"""When logits are computed and when they are scored: in sequence, pipelined, or by two workers."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from minitron_engine.llama.context import Logits
from minitron_engine.process import interrupts
from minitron_quant.perplexity.divergence import TokenScores

# makes scores of the logits of some chunks; its first argument are threads for it
Scorer = Callable[[ThreadPoolExecutor, Iterable[Logits]], list[TokenScores]]

# on a CPU: one worker scores while the other computes, and neither waits for the other's threads
# within a matrix product
WORKERS = 2
# so many jobs are submitted at once, so that a long one does not halt the other worker
IN_FLIGHT = 3


@dataclass(frozen=True)
class ScoringJob:
    """Chunks of a text that a model decodes together, and the scorer of their logits.

    logits: [rows, n_vocab] of each chunk, computed while iterating and valid until the next one.
    key, start: where the scores belong. context: locked by whoever computes in the model's context.
    """

    key: str
    start: int
    logits: Generator[Logits]
    score: Scorer
    context: threading.Lock = field(default_factory=threading.Lock)

    def run(self, pool: ThreadPoolExecutor) -> list[TokenScores]:
        """Compute the logits and score them."""
        with self.context, closing(self.logits):
            return self.score(pool, self.logits)


Jobs = Generator[ScoringJob]
ScoredJobs = Generator[tuple[ScoringJob, list[TokenScores]]]


@dataclass(frozen=True)
class Schedule:
    """How jobs run: with how many threads, shared by how many workers.

    overlap: with one worker, score a job while the next one's logits are computed. That is faster
    where a GPU computes them; on a CPU both need all cores, and copying the logits costs more than
    waiting.
    """

    threads: int
    workers: int = 1
    overlap: bool = False

    @property
    def in_flight(self) -> int:
        """The most jobs that are begun and not finished."""
        return IN_FLIGHT if self.workers > 1 else 1


def run_jobs(jobs: Jobs, schedule: Schedule) -> ScoredJobs:
    """Jobs with their scores, in order; close it when done: workers may be busy before that.

    One worker scores one job at a time. With several a job starts when the one IN_FLIGHT places
    before it has been yielded. Raises what a job raises.
    """
    with closing(jobs), ExitStack() as stack:
        pools = [
            stack.enter_context(ThreadPoolExecutor(schedule.threads // schedule.workers, "score"))
            for _ in range(schedule.workers)
        ]
        if schedule.workers > 1:
            yield from _run_concurrently(jobs, pools)
        elif schedule.overlap:
            yield from _run_pipelined(jobs, pools[0])
        else:
            for job in jobs:
                yield job, job.run(pools[0])


def _run_concurrently(jobs: Jobs, pools: Sequence[ThreadPoolExecutor]) -> ScoredJobs:
    idle: SimpleQueue[ThreadPoolExecutor] = SimpleQueue()
    for pool in pools:
        idle.put(pool)

    def work(job: ScoringJob) -> list[TokenScores]:
        pool = idle.get()
        try:
            return job.run(pool)
        finally:
            idle.put(pool)

    submitted: deque[tuple[ScoringJob, Future[list[TokenScores]]]] = deque()
    with ExitStack() as stack:
        # a signal must not close contexts that workers compute in: it is delivered afterwards
        stack.enter_context(interrupts.deferred())
        workers = stack.enter_context(ThreadPoolExecutor(len(pools), "worker"))
        # the last first: it may wait for the result of one before it
        stack.callback(lambda: [future.cancel() for _, future in reversed(submitted)])
        for job in jobs:
            submitted.append((job, workers.submit(work, job)))
            if len(submitted) == IN_FLIGHT:
                first, future = submitted.popleft()
                yield first, future.result()
            if interrupts.pending():
                break
        for job, future in submitted:
            if not (interrupts.pending() and future.cancel()):
                yield job, future.result()


def _run_pipelined(jobs: Jobs, pool: ThreadPoolExecutor) -> ScoredJobs:
    # with llama.cpp's own buffer, memory for the logits of two decodes
    copies: list[Logits] = []
    with ThreadPoolExecutor(1, thread_name_prefix="overlap") as thread:
        before: tuple[ScoringJob, Future[list[TokenScores]]] | None = None
        for job in jobs:
            count, ready = 0, None
            with job.context, closing(job.logits):
                for count, logits in enumerate(job.logits, 1):
                    if before is not None:
                        # its copies may be overwritten only now
                        ready, before = (before[0], before[1].result()), None
                    if len(copies) < count:
                        copies.append(np.empty_like(logits))
                    np.copyto(copies[count - 1], logits)
            before = job, thread.submit(job.score, pool, copies[:count])
            if ready is not None:
                yield ready
        if before is not None:
            yield before[0], before[1].result()

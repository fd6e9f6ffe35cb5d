"""Scores made of logits, and other logits computed meanwhile where that pays."""

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

Score = Callable[[ThreadPoolExecutor, Iterable[Logits]], list[TokenScores]]

# lanes on a processor: one scores while the other computes, and neither waits for the other's
# threads within a product
LANES = 2
# so many jobs are on their way, so that a long one does not halt the other lane at once
AHEAD = 3


@dataclass(frozen=True)
class Job:
    """Chunks of a text that a model decodes together, and what is made of their logits.

    logits: computes as it is iterated, [rows, n_vocab] of each chunk, gone with the next decode.
    score: maybe in another thread; its first argument are threads for it. key, start: where the
    scores belong. context: held by whoever computes in the model's context.
    """

    key: str
    start: int
    logits: Generator[Logits]
    score: Score
    context: threading.Lock = field(default_factory=threading.Lock)


Jobs = Generator[Job]
Scored = Generator[tuple[Job, list[TokenScores]]]


@dataclass(frozen=True)
class Way:
    """How jobs are done: with so many threads, in so many lanes that share them.

    overlap: in one lane, score a job while the next one's logits are computed. That pays where a
    GPU computes them; on a processor both want all cores, and copying the logits costs more than
    waiting.
    """

    threads: int
    lanes: int = 1
    overlap: bool = False

    @property
    def at_once(self) -> int:
        """The most jobs that are on their way together."""
        return AHEAD if self.lanes > 1 else 1


def scored(jobs: Jobs, way: Way) -> Scored:
    """Jobs with their scores, in order. Close it when done: before that lanes are at work.

    In one lane no two are scored at once. In several a job begins when the one AHEAD places before
    it has been given. Raises what a job raises.
    """
    with closing(jobs), ExitStack() as stack:
        pools = [
            stack.enter_context(ThreadPoolExecutor(way.threads // way.lanes, "score"))
            for _ in range(way.lanes)
        ]
        if way.lanes > 1:
            yield from _in_lanes(jobs, pools)
        elif way.overlap:
            yield from _overlapped(jobs, pools[0])
        else:
            for job in jobs:
                yield job, _done(job, pools[0])


def _done(job: Job, pool: ThreadPoolExecutor) -> list[TokenScores]:
    with job.context, closing(job.logits):
        return job.score(pool, job.logits)


def _in_lanes(jobs: Jobs, pools: Sequence[ThreadPoolExecutor]) -> Scored:
    free: SimpleQueue[ThreadPoolExecutor] = SimpleQueue()
    for pool in pools:
        free.put(pool)

    def work(job: Job) -> list[TokenScores]:
        pool = free.get()
        try:
            return _done(job, pool)
        finally:
            free.put(pool)

    under_way: deque[tuple[Job, Future[list[TokenScores]]]] = deque()
    with ExitStack() as stack:
        # a signal that ended the contexts would find lanes at work in them: it comes afterwards
        stack.enter_context(interrupts.deferred())
        lanes = stack.enter_context(ThreadPoolExecutor(len(pools), "lane"))
        # the last first: it may wait for what one before it makes
        stack.callback(lambda: [future.cancel() for _, future in reversed(under_way)])
        for job in jobs:
            under_way.append((job, lanes.submit(work, job)))
            if len(under_way) == AHEAD:
                first, future = under_way.popleft()
                yield first, future.result()
            if interrupts.pending():
                break
        for job, future in under_way:
            if not (interrupts.pending() and future.cancel()):
                yield job, future.result()


def _overlapped(jobs: Jobs, pool: ThreadPoolExecutor) -> Scored:
    # with llama.cpp's own buffer, memory for the logits of two decodes
    copies: list[Logits] = []
    with ThreadPoolExecutor(1, thread_name_prefix="overlap") as thread:
        before: tuple[Job, Future[list[TokenScores]]] | None = None
        for job in jobs:
            count, ready = 0, None
            with job.context, closing(job.logits):
                for count, logits in enumerate(job.logits, 1):
                    if before is not None:
                        # only now may its copies be written over
                        ready, before = (before[0], before[1].result()), None
                    if len(copies) < count:
                        copies.append(np.empty_like(logits))
                    np.copyto(copies[count - 1], logits)
            before = job, thread.submit(job.score, pool, copies[:count])
            if ready is not None:
                yield ready
        if before is not None:
            yield before[0], before[1].result()

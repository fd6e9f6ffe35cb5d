"""Scores made of logits, in another thread while the next logits are computed where that pays."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from minitron_engine.context import Logits
from minitron_quant.measure.divergence import TokenScores

Score = Callable[[Iterable[Logits]], list[TokenScores]]


@dataclass(frozen=True)
class Job:
    """Chunks of a text that a model decodes together, and what is made of their logits.

    logits: computes as it is iterated, [rows, n_vocab] of each chunk, gone with the next decode.
    score: maybe in another thread. key, start: where the scores belong.
    """

    key: str
    start: int
    logits: Iterator[Logits]
    score: Score


Jobs = Generator[Job, None, None]


def scored(jobs: Jobs, overlap: bool) -> Iterator[tuple[Job, list[TokenScores]]]:
    """Jobs with their scores, in order; never two at once, so one may use what the last has made.

    overlap: one is scored while the next one's logits are computed. That pays where a GPU computes
    them; on a CPU both want all cores, and copying the logits costs more than waiting. Raises what
    a job raises.
    """
    with closing(jobs):
        yield from _overlapped(jobs) if overlap else ((job, job.score(job.logits)) for job in jobs)


def _overlapped(jobs: Jobs) -> Iterator[tuple[Job, list[TokenScores]]]:
    # with llama.cpp's own buffer, memory for the logits of two decodes
    copies: list[Logits] = []
    with ThreadPoolExecutor(1, thread_name_prefix="overlap") as thread:
        before: tuple[Job, Future[list[TokenScores]]] | None = None
        for job in jobs:
            count, ready = 0, None
            for count, logits in enumerate(job.logits, 1):
                if before is not None:
                    # only now may its copies be written over
                    ready, before = (before[0], before[1].result()), None
                if len(copies) < count:
                    copies.append(np.empty_like(logits))
                np.copyto(copies[count - 1], logits)
            before = job, thread.submit(job.score, copies[:count])
            if ready is not None:
                yield ready
        if before is not None:
            yield before[0], before[1].result()

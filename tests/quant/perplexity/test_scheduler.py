"""Schedules of scoring: the same scores in the same order, and errors and signals that surface."""

import signal
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from minitron_engine.llama.context import Logits
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity.divergence import TokenScores
from minitron_quant.perplexity.evaluation import ReferenceScores
from minitron_quant.perplexity.scheduler import (
    IN_FLIGHT,
    Jobs,
    Schedule,
    ScoringJob,
    run_jobs,
)

SEQUENTIAL, PIPELINED, CONCURRENT = Schedule(2), Schedule(2, overlap=True), Schedule(2, workers=2)
SCHEDULES = pytest.mark.parametrize("schedule", [SEQUENTIAL, PIPELINED, CONCURRENT])
SMALL = ChunkSettings(n_ctx=64, n_batch=128, threads=2)


def sums(_pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
    return [TokenScores.of_nll(rows.sum(axis=1, dtype=np.float64)) for rows in chunks]


def nothing() -> Generator[Logits]:
    yield np.zeros((1, 2), np.float32)


@SCHEDULES
def test_run_jobs_in_order_each_from_its_own_logits(schedule: Schedule) -> None:
    buffer, context = np.empty((2, 3), np.float32), threading.Lock()

    def logits(number: int, chunks: int) -> Generator[Logits]:
        for chunk in range(chunks):
            buffer[:] = 10 * number + chunk
            yield buffer

    sizes = [2, 1, 3, 1, 2, 2]
    jobs = (
        ScoringJob("key", n, logits(n, chunks), sums, context) for n, chunks in enumerate(sizes)
    )
    done = list(run_jobs(jobs, schedule))
    assert [job.start for job, _ in done] == list(range(len(sizes)))
    for number, (_, scores) in enumerate(done):
        expected = [[3 * (10 * number + chunk)] * 2 for chunk in range(sizes[number])]
        assert [list(each.nll) for each in scores] == expected


def test_run_jobs_pipelined_computes_next_logits_while_scoring() -> None:
    begun = threading.Event()

    def logits(number: int) -> Generator[Logits]:
        if number == 1:
            begun.set()
        yield np.zeros((1, 2), np.float32)

    def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        assert begun.wait(10)
        return sums(pool, chunks)

    jobs = (ScoringJob("key", n, logits(n), score) for n in range(2))
    assert len(list(run_jobs(jobs, PIPELINED))) == 2


def test_run_jobs_two_workers_each_with_own_threads() -> None:
    meeting, pools = threading.Barrier(2, timeout=10), set()

    def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        meeting.wait()  # both are here at once
        pools.add(pool)
        return sums(pool, chunks)

    assert (
        len(list(run_jobs((ScoringJob("key", n, nothing(), score) for n in range(6)), CONCURRENT)))
        == 6
    )
    assert len(pools) == 2


def test_run_jobs_begins_at_most_in_flight_jobs() -> None:
    held, begun = threading.Event(), []

    def score(number: int, pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        begun.append(number)
        if number == 0:
            # the other worker goes on meanwhile, but not for ever
            assert not held.wait(0.3)
        return sums(pool, chunks)

    jobs = (ScoringJob("key", n, nothing(), partial(score, n)) for n in range(8))
    done = run_jobs(jobs, CONCURRENT)
    next(done)
    assert begun == list(range(IN_FLIGHT))
    assert [job.start for job, _ in done] == list(range(1, 8))


@SCHEDULES
@pytest.mark.parametrize("where", ["logits", "score"])
def test_run_jobs_error_ends_jobs_and_is_raised(schedule: Schedule, where: str) -> None:
    closed, ended = [], []

    def fail(name: str, number: int) -> None:
        if name == where and number == 1:
            raise MemoryError(name)

    def logits(number: int) -> Generator[Logits]:
        fail("logits", number)
        try:
            yield np.zeros((1, 2), np.float32)
        finally:
            ended.append(number)

    def score(number: int, pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        for _ in chunks:
            fail("score", number)
        return sums(pool, [])

    def jobs() -> Jobs:
        try:
            for number in range(9):
                yield ScoringJob("key", number, logits(number), partial(score, number))
        finally:
            closed.append(number)

    with pytest.raises(MemoryError, match=where):
        list(run_jobs(jobs(), schedule))
    assert closed and closed[0] < 1 + IN_FLIGHT
    assert where == "logits" or 1 in ended  # what was half read is closed: it may hold a context


def test_reference_scores_failure_reaches_all_that_wait() -> None:
    scores = ReferenceScores()

    def compute(_pool: ThreadPoolExecutor, _chunks: Any) -> list[TokenScores]:
        with scores.computing():
            raise MemoryError("the reference")

    def wait(pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        with pytest.raises(MemoryError, match="the reference"):
            scores.chunks()
        return sums(pool, chunks)

    jobs = (ScoringJob("key", n, nothing(), wait if n else compute) for n in range(5))
    with pytest.raises(MemoryError, match="the reference"):
        list(run_jobs(jobs, CONCURRENT))


def test_run_jobs_closed_early_leaves_no_worker_busy() -> None:
    working: set[int] = set()

    def score(number: int, pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        working.add(number)
        threading.Event().wait(0.02)
        working.discard(number)
        return sums(pool, chunks)

    done = run_jobs(
        (ScoringJob("key", n, nothing(), partial(score, n)) for n in range(9)), CONCURRENT
    )
    next(done)
    done.close()
    assert not working


def test_run_jobs_delivers_signals_when_no_worker_is_busy() -> None:
    working: set[int] = set()

    def score(number: int, pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        working.add(number)
        if number == 2:
            for _ in range(3):  # pressed again while the workers finish
                signal.raise_signal(signal.SIGINT)
                threading.Event().wait(0.05)
        working.discard(number)
        return sums(pool, chunks)

    jobs = (ScoringJob("key", n, nothing(), partial(score, n)) for n in range(9))
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs(jobs, CONCURRENT))
    assert not working


def test_run_jobs_context_serves_one_job_at_a_time() -> None:
    context, inside, most = threading.Lock(), 0, 0

    def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.01)
        inside -= 1
        return sums(pool, chunks)

    jobs = (ScoringJob("key", n, nothing(), score, context) for n in range(6))
    assert len(list(run_jobs(jobs, CONCURRENT))) == 6
    assert most == 1

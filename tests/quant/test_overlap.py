"""Scoring beside other decodes: the same scores in the same order, and errors that surface."""

import signal
import threading
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.support import beginning, quantize
from minitron_engine.llama.context import Logits
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity import evaluation, multi_model
from minitron_quant.perplexity.divergence import TokenScores
from minitron_quant.perplexity.evaluation import Base
from minitron_quant.perplexity.model_batching import MemoryPlan
from minitron_quant.perplexity.scheduler import AHEAD, Job, Jobs, Score, Scored, Way, scored
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import Row, measure

IN_TURN, OVERLAPPED, IN_LANES = Way(2), Way(2, overlap=True), Way(2, lanes=2)
WAYS = pytest.mark.parametrize("way", [IN_TURN, OVERLAPPED, IN_LANES])
SMALL = ChunkSettings(n_ctx=64, n_batch=128, threads=2)


def sums(_pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
    return [TokenScores.alone(rows.sum(axis=1, dtype=np.float64)) for rows in chunks]


def nothing() -> Generator[Logits]:
    yield np.zeros((1, 2), np.float32)


@WAYS
def test_every_job_is_scored_in_order_from_its_own_logits(way: Way) -> None:
    buffer, context = np.empty((2, 3), np.float32), threading.Lock()

    def logits(number: int, chunks: int) -> Generator[Logits]:
        for chunk in range(chunks):
            buffer[:] = 10 * number + chunk
            yield buffer

    sizes = [2, 1, 3, 1, 2, 2]
    jobs = (Job("key", n, logits(n, chunks), sums, context) for n, chunks in enumerate(sizes))
    done = list(scored(jobs, way))
    assert [job.start for job, _ in done] == list(range(len(sizes)))
    for number, (_, scores) in enumerate(done):
        expected = [[3 * (10 * number + chunk)] * 2 for chunk in range(sizes[number])]
        assert [list(each.nll) for each in scores] == expected


def test_the_next_logits_are_computed_while_one_is_scored() -> None:
    begun = threading.Event()

    def logits(number: int) -> Generator[Logits]:
        if number == 1:
            begun.set()
        yield np.zeros((1, 2), np.float32)

    def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        assert begun.wait(10)
        return sums(pool, chunks)

    jobs = (Job("key", n, logits(n), score) for n in range(2))
    assert len(list(scored(jobs, OVERLAPPED))) == 2


def test_two_lanes_are_at_work_each_with_its_own_threads() -> None:
    meeting, pools = threading.Barrier(2, timeout=10), set()

    def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        meeting.wait()  # both are here at once
        pools.add(pool)
        return sums(pool, chunks)

    assert len(list(scored((Job("key", n, nothing(), score) for n in range(6)), IN_LANES))) == 6
    assert len(pools) == 2


def test_no_job_begins_before_the_one_that_far_ahead_is_given() -> None:
    held, begun = threading.Event(), []

    def score(number: int, pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        begun.append(number)
        if number == 0:
            # the other lane goes on meanwhile, but not for ever
            assert not held.wait(0.3)
        return sums(pool, chunks)

    jobs = (Job("key", n, nothing(), partial(score, n)) for n in range(8))
    done = scored(jobs, IN_LANES)
    next(done)
    assert begun == list(range(AHEAD))
    assert [job.start for job, _ in done] == list(range(1, 8))


@WAYS
@pytest.mark.parametrize("where", ["logits", "score"])
def test_an_error_ends_the_jobs_and_surfaces(way: Way, where: str) -> None:
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
                yield Job("key", number, logits(number), partial(score, number))
        finally:
            closed.append(number)

    with pytest.raises(MemoryError, match=where):
        list(scored(jobs(), way))
    assert closed and closed[0] < 1 + AHEAD
    assert where == "logits" or 1 in ended  # what was half read is closed: it may hold a context


def test_who_waits_for_a_reference_that_failed_does_not_wait_for_ever() -> None:
    base = Base()

    def make(_pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        with base.making():
            raise MemoryError("the reference")

    def use(pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        assert base.chunks() == []
        return sums(pool, chunks)

    jobs = (Job("key", n, nothing(), use if n else make) for n in range(5))
    with pytest.raises(MemoryError, match="the reference"):
        list(scored(jobs, IN_LANES))


def test_whoever_stops_in_the_middle_finds_no_lane_at_work() -> None:
    working: set[int] = set()

    def score(number: int, pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        working.add(number)
        threading.Event().wait(0.02)
        working.discard(number)
        return sums(pool, chunks)

    done = scored((Job("key", n, nothing(), partial(score, n)) for n in range(9)), IN_LANES)
    next(done)
    done.close()
    assert not working


def test_signals_come_when_no_lane_is_at_work() -> None:
    working: set[int] = set()

    def score(number: int, pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
        working.add(number)
        if number == 2:
            for _ in range(3):  # pressed again while lanes come to their end
                signal.raise_signal(signal.SIGINT)
                threading.Event().wait(0.05)
        working.discard(number)
        return sums(pool, chunks)

    jobs = (Job("key", n, nothing(), partial(score, n)) for n in range(9))
    with pytest.raises(KeyboardInterrupt):
        list(scored(jobs, IN_LANES))
    assert not working


def test_a_context_is_one_jobs_at_a_time() -> None:
    context, inside, most = threading.Lock(), 0, 0

    def score(pool: ThreadPoolExecutor, chunks: Iterable[Logits]) -> list[TokenScores]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        threading.Event().wait(0.01)
        inside -= 1
        return sums(pool, chunks)

    jobs = (Job("key", n, nothing(), score, context) for n in range(6))
    assert len(list(scored(jobs, IN_LANES))) == 6
    assert most == 1


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[Way]:
    """How the jobs of every pass were done."""
    found: list[Way] = []

    def watched(jobs: Jobs, way: Way) -> Scored:
        found.append(way)
        return scored(jobs, way)

    monkeypatch.setattr(evaluation, "scored", watched)
    return found


@pytest.fixture(scope="module")
def levels(nano_nemotron: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    made = quantize(nano_nemotron, tmp_path_factory.mktemp("levels"), "Q8_0", "Q4_0", "Q5_0")
    return tuple(made[level].path for level in ("Q8_0", "Q4_0", "Q5_0"))


def everything(rows: Iterable[Row]) -> list[object]:
    return [(row, row.noise, row.chunk_nll, row.chunk_kld) for row in rows]


@pytest.mark.parametrize("reference", ["none", "memory", "disk"])
def test_measured_to_the_same_bits(
    reference: str,
    nano_nemotron: Path,
    levels: tuple[Path, ...],
    ways: list[Way],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside = None if reference == "none" else nano_nemotron
    one = replace(SMALL, n_batch=256, limit=14, threads=1)  # four parts; the last has two chunks
    settings = MeasureSettings(levels, beginning(tmp_path, 8000), one, reference=beside)
    if reference == "disk":
        groups = MemoryPlan([levels], from_disk=True)
        monkeypatch.setattr(multi_model, "plan_memory", lambda *_: groups)
    in_turn = everything(measure(settings))
    assert {way.lanes for way in ways} == {1}
    ways.clear()
    in_lanes = everything(measure(replace(settings, chunks=replace(one, threads=2))))
    assert ways[-1] == IN_LANES
    assert in_lanes == in_turn
    monkeypatch.setattr(evaluation, "scored", lambda jobs, _way: scored(jobs, OVERLAPPED))
    assert everything(measure(settings)) == in_turn


@pytest.mark.parametrize(
    ("models", "chunks", "lanes"),
    [
        (1, replace(SMALL, limit=4), 2),
        (1, replace(SMALL, limit=4, threads=4), 2),
        (1, replace(SMALL, limit=4, threads=3), 1),
        (1, replace(SMALL, limit=6), 1),  # of three parts the last would have half of the threads
        (1, replace(SMALL, limit=2), 1),
        (1, replace(SMALL, limit=25, n_batch=64), 2),  # or of many
        (2, replace(SMALL, limit=4), 1),  # a reference and one level wait for each other
        (3, replace(SMALL, limit=2), 2),
    ],
)
def test_lanes_where_they_pay(
    models: int,
    chunks: ChunkSettings,
    lanes: int,
    nano_nemotron: Path,
    levels: tuple[Path, ...],
    ways: list[Way],
    tmp_path: Path,
) -> None:
    reference = None if models == 1 else nano_nemotron
    files = (nano_nemotron, *levels)[:models]
    list(measure(MeasureSettings(files, beginning(tmp_path, 8000), chunks, reference=reference)))
    assert [way.lanes for way in ways] == [lanes]


def test_without_memory_for_a_second_context_there_is_one(
    nano_nemotron: Path, ways: list[Way], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = replace(SMALL, limit=4)
    settings = MeasureSettings((nano_nemotron,), beginning(tmp_path, 8000), chunks)
    monkeypatch.setattr(
        "minitron_quant.perplexity.model_batching.available_memory", lambda: 1 << 20
    )
    list(measure(settings))
    assert [way.lanes for way in ways] == [1]


@pytest.mark.parametrize("way", [OVERLAPPED, IN_LANES])
def test_ctrl_c_beside_a_decode_keeps_what_is_scored(
    way: Way, nano_nemotron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = replace(SMALL, limit=12)
    text = beginning(tmp_path, 8000)
    settings = MeasureSettings((nano_nemotron,), text, chunks, state=tmp_path / "state")
    (whole,) = measure(replace(settings, state=None))
    made = 0

    def interrupted(jobs: Jobs, _way: Way) -> Scored:
        def press(score: Score, pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
            nonlocal made
            made += 1
            if made == 4:
                signal.raise_signal(signal.SIGINT)
            return score(pool, chunks)

        return scored((replace(job, score=partial(press, job.score)) for job in jobs), way)

    monkeypatch.setattr(evaluation, "scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(measure(settings))
    assert 4 <= made <= 5
    (row,) = measure(settings)
    assert made <= 4 + 6 - 2
    assert (row.ppl, row.chunk_nll) == (whole.ppl, whole.chunk_nll)


def test_signals_while_levels_are_loaded_come_when_no_loader_is_at_work(
    nano_nemotron: Path,
    levels: tuple[Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loading: set[Path] = set()
    open_for = multi_model.open_for

    def slow(path: Path, *rest: Any) -> Any:
        if path != nano_nemotron:
            loading.add(path)
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
                threading.Event().wait(0.05)
            loading.discard(path)
        return open_for(path, *rest)

    monkeypatch.setattr(multi_model, "open_for", slow)
    chunks = replace(SMALL, limit=2)
    settings = MeasureSettings(levels, beginning(tmp_path, 8000), chunks, reference=nano_nemotron)
    with pytest.raises(KeyboardInterrupt):
        list(measure(settings))
    assert not loading

"""Scoring beside the next decode: the same scores in the same order, and errors that surface."""

import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minitron_engine.context import Logits
from minitron_quant.chunks import ChunkSettings
from minitron_quant.measure import passes, together
from minitron_quant.measure.divergence import TokenScores
from minitron_quant.measure.fitting import MemoryPlan
from minitron_quant.measure.overlap import Job, Jobs, Score, scored
from minitron_quant.measure.settings import MeasureSettings
from minitron_quant.measure.table import Row, measure
from support import beginning, quantize


def sums(chunks: Iterable[Logits]) -> list[TokenScores]:
    return [TokenScores.alone(rows.sum(axis=1, dtype=np.float64)) for rows in chunks]


@pytest.mark.parametrize("overlap", [False, True])
def test_every_job_is_scored_in_order_from_its_own_logits(overlap: bool) -> None:
    buffer = np.empty((2, 3), np.float32)

    def logits(number: int, chunks: int) -> Iterator[Logits]:
        for chunk in range(chunks):
            buffer[:] = 10 * number + chunk
            yield buffer

    sizes = [2, 1, 3]
    jobs = (Job("key", n, logits(n, chunks), sums) for n, chunks in enumerate(sizes))
    done = list(scored(jobs, overlap))
    assert [job.start for job, _ in done] == [0, 1, 2]
    for number, (_, scores) in enumerate(done):
        expected = [[3 * (10 * number + chunk)] * 2 for chunk in range(sizes[number])]
        assert [list(each.nll) for each in scores] == expected


def test_the_next_logits_are_computed_while_one_is_scored() -> None:
    begun = threading.Event()

    def logits(number: int) -> Iterator[Logits]:
        if number == 1:
            begun.set()
        yield np.zeros((1, 2), np.float32)

    def score(chunks: Iterable[Logits]) -> list[TokenScores]:
        assert begun.wait(10)
        return sums(chunks)

    assert len(list(scored((Job("key", n, logits(n), score) for n in range(2)), True))) == 2


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("where", ["logits", "score"])
def test_an_error_ends_the_jobs_and_surfaces(overlap: bool, where: str) -> None:
    closed = []

    def fail(name: str, number: int) -> None:
        if name == where and number == 1:
            raise MemoryError(name)

    def logits(number: int) -> Iterator[Logits]:
        fail("logits", number)
        yield np.zeros((1, 2), np.float32)

    def score(number: int, chunks: Iterable[Logits]) -> list[TokenScores]:
        fail("score", number)
        return sums(chunks)

    def jobs() -> Jobs:
        try:
            for number in range(5):
                yield Job("key", number, logits(number), partial(score, number))
        finally:
            closed.append(number)

    with pytest.raises(MemoryError, match=where):
        list(scored(jobs(), overlap))
    assert closed and closed[0] < 4


@pytest.mark.parametrize("reference", ["none", "memory", "disk"])
def test_measured_to_the_same_bits(
    reference: str, nano_nemotron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = quantize(nano_nemotron, tmp_path, "Q8_0")["Q8_0"].path
    beside = None if reference == "none" else nano_nemotron
    chunks = ChunkSettings(n_ctx=64, n_batch=256, limit=10)
    settings = MeasureSettings((level,), beginning(tmp_path, 8000), chunks, reference=beside)
    if reference == "disk":
        groups = MemoryPlan([(level,)], from_disk=True)
        monkeypatch.setattr(together, "plan_memory", lambda *_: groups)

    def everything(rows: Iterable[Row]) -> list[object]:
        return [(row, row.noise, row.chunk_nll, row.chunk_kld) for row in rows]

    in_place = everything(measure(settings))
    monkeypatch.setattr(passes, "scored", lambda jobs, _overlap: scored(jobs, True))
    assert everything(measure(settings)) == in_place


def test_ctrl_c_beside_a_decode_keeps_what_is_scored(
    nano_nemotron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = ChunkSettings(n_ctx=64, n_batch=128, limit=12)
    text = beginning(tmp_path, 8000)
    settings = MeasureSettings((nano_nemotron,), text, chunks, state=tmp_path / "state")
    (whole,) = measure(replace(settings, state=None))
    made = 0

    def interrupted(jobs: Jobs, _overlap: bool) -> Iterator[tuple[Job, list[TokenScores]]]:
        def press(score: Score, chunks: Iterable[Logits]) -> list[TokenScores]:
            nonlocal made
            made += 1
            if made == 4:
                signal.raise_signal(signal.SIGINT)
            return score(chunks)

        return scored((replace(job, score=partial(press, job.score)) for job in jobs), True)

    monkeypatch.setattr(passes, "scored", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(measure(settings))
    assert 4 <= made <= 5
    (row,) = measure(settings)
    assert made <= 4 + 6 - 2
    assert (row.ppl, row.chunk_nll) == (whole.ppl, whole.chunk_nll)

"""Measuring in every schedule: the same bits, what is scored is kept, signals arrive."""

import signal
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from helpers.support import beginning, quantize
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity import evaluation, multi_model
from minitron_quant.perplexity.divergence import TokenScores
from minitron_quant.perplexity.loaded_model import LoadedModel, ModelLoader
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.scheduler import (
    Jobs,
    Schedule,
    ScoredJobs,
    Scorer,
    run_jobs,
)
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure

SEQUENTIAL, PIPELINED, CONCURRENT = Schedule(2), Schedule(2, overlap=True), Schedule(2, workers=2)
SMALL = ChunkSettings(n_ctx=64, n_batch=128, threads=2)


@pytest.fixture
def schedules(monkeypatch: pytest.MonkeyPatch) -> list[Schedule]:
    """How the jobs of every pass were done."""
    found: list[Schedule] = []

    def watched(jobs: Jobs, schedule: Schedule) -> ScoredJobs:
        found.append(schedule)
        return run_jobs(jobs, schedule)

    monkeypatch.setattr(evaluation, "run_jobs", watched)
    return found


@pytest.fixture(scope="module")
def levels(nano_nemotron: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    made = quantize(nano_nemotron, tmp_path_factory.mktemp("levels"), "Q8_0", "Q4_0", "Q5_0")
    return tuple(made[level].path for level in ("Q8_0", "Q4_0", "Q5_0"))


def everything(rows: Iterable[Row]) -> list[object]:
    return [(row, row.noise, row.chunk_nll, row.chunk_kld) for row in rows]


@pytest.mark.parametrize("reference", ["none", "memory", "disk"])
def test_measure_same_bits_in_every_schedule(
    reference: str,
    nano_nemotron: Path,
    levels: tuple[Path, ...],
    schedules: list[Schedule],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beside = None if reference == "none" else nano_nemotron
    one = replace(SMALL, n_batch=256, limit=14, threads=1)  # four parts; the last has two chunks
    settings = MeasureSettings(levels, beginning(tmp_path, 8000), one, reference=beside)
    if reference == "disk":
        monkeypatch.setattr(multi_model, "group_models", lambda *_: [list(levels)])
    sequential = everything(measure(settings))
    assert {each.workers for each in schedules} == {1}
    schedules.clear()
    concurrent = everything(measure(replace(settings, chunks=replace(one, threads=2))))
    assert schedules[-1] == CONCURRENT
    assert concurrent == sequential
    monkeypatch.setattr(evaluation, "run_jobs", lambda jobs, _schedule: run_jobs(jobs, PIPELINED))
    assert everything(measure(settings)) == sequential


@pytest.mark.parametrize(
    ("models", "chunks", "workers"),
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
def test_measure_uses_workers_where_faster(
    models: int,
    chunks: ChunkSettings,
    workers: int,
    nano_nemotron: Path,
    levels: tuple[Path, ...],
    schedules: list[Schedule],
    tmp_path: Path,
) -> None:
    reference = None if models == 1 else nano_nemotron
    files = (nano_nemotron, *levels)[:models]
    list(measure(MeasureSettings(files, beginning(tmp_path, 8000), chunks, reference=reference)))
    assert [each.workers for each in schedules] == [workers]


def test_measure_one_context_without_memory_for_two(
    nano_nemotron: Path, schedules: list[Schedule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = replace(SMALL, limit=4)
    settings = MeasureSettings((nano_nemotron,), beginning(tmp_path, 8000), chunks)
    monkeypatch.setattr(
        "minitron_quant.perplexity.model_batching.available_memory", lambda: 1 << 20
    )
    list(measure(settings))
    assert [each.workers for each in schedules] == [1]


@pytest.mark.parametrize("schedule", [PIPELINED, CONCURRENT])
def test_measure_interrupted_keeps_what_is_scored(
    schedule: Schedule, nano_nemotron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = replace(SMALL, limit=12)
    text = beginning(tmp_path, 8000)
    settings = MeasureSettings((nano_nemotron,), text, chunks, state=tmp_path / "state")
    (whole,) = measure(replace(settings, state=None))
    made = 0

    def interrupted(jobs: Jobs, _schedule: Schedule) -> ScoredJobs:
        def press(score: Scorer, pool: ThreadPoolExecutor, chunks: Any) -> list[TokenScores]:
            nonlocal made
            made += 1
            if made == 4:
                signal.raise_signal(signal.SIGINT)
            return score(pool, chunks)

        return run_jobs((replace(job, score=partial(press, job.score)) for job in jobs), schedule)

    monkeypatch.setattr(evaluation, "run_jobs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(measure(settings))
    assert 4 <= made <= 5
    (row,) = measure(settings)
    assert made <= 4 + 6 - 2
    assert (row.ppl, row.chunk_nll) == (whole.ppl, whole.chunk_nll)


def test_load_all_delivers_signals_when_no_loader_is_busy(
    nano_nemotron: Path,
    levels: tuple[Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loading: set[Path] = set()
    load = ModelLoader.load

    def slow(loader: ModelLoader, path: Path, *rest: Any) -> LoadedModel:
        if path != nano_nemotron:
            loading.add(path)
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
                threading.Event().wait(0.05)
            loading.discard(path)
        return load(loader, path, *rest)

    monkeypatch.setattr(ModelLoader, "load", slow)
    chunks = replace(SMALL, limit=2)
    settings = MeasureSettings(levels, beginning(tmp_path, 8000), chunks, reference=nano_nemotron)
    with pytest.raises(KeyboardInterrupt):
        list(measure(settings))
    assert not loading

"""Measuring that goes on after a kill, and reference rows on disk: the same table either way."""

import os
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import beginning, quantize
from minitron_core.errors import Damaged, Denied
from minitron_quant.chunking import ChunkSettings
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity import loaded_model, multi_model
from minitron_quant.perplexity.divergence import TokenScores, reference_chunk
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.model_batching import bytes_needed, group_models
from minitron_quant.perplexity.reference_cache import open_cache
from minitron_quant.perplexity.scheduler import IN_FLIGHT
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.state import ModelInfo, open_state
from minitron_quant.perplexity.table import measure

CHUNKS = ChunkSettings(n_ctx=64, n_batch=256, limit=10)


@pytest.fixture(scope="module")
def levels(nano_nemotron: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = quantize(nano_nemotron, tmp_path_factory.mktemp("levels"), "Q8_0", "Q4_0", "Q5_0")
    return [made[level].path for level in ("Q8_0", "Q4_0", "Q5_0")]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return beginning(tmp_path_factory.mktemp("text"), 8000)


@pytest.fixture
def settings(
    nano_nemotron: Path, levels: list[Path], text: Path, tmp_path: Path
) -> MeasureSettings:
    state = tmp_path / "rows.sqlite"
    return MeasureSettings(tuple(levels[:2]), text, CHUNKS, reference=nano_nemotron, state=state)


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models, one for every decode."""
    done: list[str] = []
    decode = loaded_model.decode_chunks

    def count(context: Any, *rest: Any) -> Any:
        done.append(context.model.path.name)
        return decode(context, *rest)

    monkeypatch.setattr(loaded_model, "decode_chunks", count)
    return done


def everything(rows: list[Row]) -> list[Any]:
    return [(row, row.chunk_nll, row.chunk_kld) for row in rows]


class Killed(Exception):
    pass


@pytest.mark.parametrize("beside", [True, False])
def test_measure_resumes_a_killed_run(
    settings: MeasureSettings, decodes: list[str], beside: bool
) -> None:
    if not beside:
        settings = replace(settings, reference=None)
    whole = list(measure(replace(settings, state=None)))
    once = len(decodes)
    decodes.clear()

    def kill(event: Any) -> None:
        if event.done / event.total > 0.4:
            raise Killed

    with pytest.raises(Killed):
        list(measure(settings, kill))
    assert 0 < len(decodes) < once
    assert everything(list(measure(settings))) == everything(whole)
    # beside a reference what was in work is done again, and the reference for it
    assert once <= len(decodes) <= once + (IN_FLIGHT if beside else 0)
    decodes.clear()
    # nothing is left to do, not even to open a model
    assert everything(list(measure(settings))) == everything(whole)
    assert not decodes


def test_measure_adds_chunks_and_models_to_a_state(
    settings: MeasureSettings, decodes: list[str]
) -> None:
    first = replace(settings, models=settings.models[:1], chunks=replace(CHUNKS, limit=4))
    list(measure(first))
    decodes.clear()
    rows = list(measure(replace(first, chunks=replace(CHUNKS, limit=8))))
    # one part of four chunks more, of the reference and of one level
    assert len(decodes) == 2 and rows[1].chunks == 8
    fewer = list(measure(first))
    assert fewer[1].chunks == 4 and len(decodes) == 2
    decodes.clear()
    assert len(list(measure(settings))) == 3
    assert decodes.count(settings.models[0].name) == 1
    # a part of another size is computed again: its last digits may differ
    two = replace(first, chunks=replace(CHUNKS, limit=2))
    assert everything(list(measure(two))) == everything(list(measure(replace(two, state=None))))


def test_resume_keys_differ_by_settings_text_and_file(
    settings: MeasureSettings, decodes: list[str], tmp_path: Path
) -> None:
    settings = replace(settings, models=settings.models[:1], chunks=replace(CHUNKS, limit=4))
    list(measure(settings))
    text = tmp_path / "other.txt"
    text.write_bytes(settings.text.read_bytes()[100:])
    for other in (
        replace(settings, text=text),
        replace(settings, chunks=replace(settings.chunks, n_batch=128)),
        replace(settings, chunks=replace(settings.chunks, stride=16)),
        replace(settings, reference=None),
        replace(settings, reference=settings.models[0], models=settings.paths[:1]),
    ):
        decodes.clear()
        list(measure(other))
        assert decodes
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(settings.models[0].read_bytes())
    decodes.clear()
    assert [row.model for row in measure(replace(settings, models=(copy,)))][1] == "copy.gguf"
    assert not decodes  # the same bytes under another name


KILLED = """
import os, sys
from pathlib import Path
from minitron_quant.chunking import ChunkSettings
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure
reference, model, text, state = map(Path, sys.argv[1:])
chunks = ChunkSettings(n_ctx=64, n_batch=64, limit=20)
def tell(event):
    print(event.done, flush=True)
list(measure(MeasureSettings((model,), text, chunks, reference=reference, state=state), tell))
"""


def test_measure_reference_scored_before_without_one(settings: MeasureSettings) -> None:
    settings = replace(settings, chunks=replace(CHUNKS, limit=4), models=settings.paths[:1])
    (alone,) = measure(replace(settings, reference=None))
    (row,) = measure(settings)
    assert row.noise is None and row.ppl == alone.ppl and row.accuracy_pct == 100


def test_measure_resumes_after_sigkill(
    nano_nemotron: Path, levels: list[Path], text: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    words = [nano_nemotron, levels[0], text, state]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *map(str, words)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(1 + 6):  # the start and three parts, of two models each
            process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    chunks = ChunkSettings(n_ctx=64, n_batch=64, limit=20)
    settings = MeasureSettings((levels[0],), text, chunks, reference=nano_nemotron)
    events: list[Any] = []
    resumed = list(measure(replace(settings, state=state), events.append))
    assert 0 < sum(event.done > 0 for event in events) <= 2 * 17
    assert everything(resumed) == everything(list(measure(settings)))


def test_open_state_refuses_other_files(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(Damaged, match="holds no measured rows"), open_state(text):
        pass
    with pytest.raises(Denied, match="cannot be written"), open_state(tmp_path / "no" / "state"):
        pass
    assert text.read_text().startswith("not a database")


def test_state_has_chunks_only_with_their_group(tmp_path: Path) -> None:
    scores = TokenScores.of_nll(np.arange(3.0))
    with open_state(tmp_path / "state") as state:
        state.load("a")
        state.set_info("a", ModelInfo("CPU", 3))
        state.put("a", 0, [scores, scores])
    with open_state(tmp_path / "state") as state:
        state.load("a")
        assert state.info("a") == ModelInfo("CPU", 3)
        assert state.has("a", 0, 2) and not state.has("a", 0, 1) and not state.has("a", 0, 3)
        assert [s.nll.tolist() for s in state.scores("a")] == [[0, 1, 2]] * 2


def test_measure_from_disk_has_the_same_numbers(
    settings: MeasureSettings, decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(settings, state=None)
    at_once = list(measure(settings))
    once = sorted(decodes)
    decodes.clear()
    monkeypatch.setattr(multi_model, "memory_for", lambda *_where: 0)
    monkeypatch.setattr(multi_model, "cache_budget", lambda _folder: 1)  # full with every part
    assert everything(list(measure(settings))) == everything(at_once)
    assert sorted(decodes) == once  # the reference is not run more often


def test_group_models_by_memory(nano_nemotron: Path, levels: list[Path]) -> None:
    needs = {
        path: bytes_needed(open_model_files(path), CHUNKS) for path in (nano_nemotron, *levels)
    }
    sizes = list(needs.values())
    assert all(size > path.stat().st_size for size, path in zip(sizes[1:], levels, strict=True))

    def groups(free: float) -> list[list[Path]] | None:
        return group_models(needs, nano_nemotron, levels, int(free / 0.7) + 2)

    assert groups(sum(sizes)) is None
    assert groups(sum(sizes) - 10) == [levels]
    assert groups(sizes[1] + sizes[2]) == [levels[:2], [levels[2]]]
    assert groups(0) == [[level] for level in levels]


@given(rows=st.integers(1, 9), vocabulary=st.integers(2, 70), spread=st.floats(0, 20))
def test_reference_cache_round_trip(rows: int, vocabulary: int, spread: float) -> None:
    random = np.random.default_rng(rows * vocabulary)
    logits = (spread * random.standard_normal((2, rows, vocabulary))).astype(np.float32)
    targets = random.integers(0, vocabulary, (2, rows)).astype(np.int32)
    with ThreadPoolExecutor(1) as pool, open_cache(Path("/tmp"), 1) as cache:
        chunks = [reference_chunk(pool, x, y) for x, y in zip(logits, targets, strict=True)]
        assert not cache.full
        cache.put(0, chunks[:1])
        cache.put(4, chunks[1:])
        assert cache.full and cache.starts == [0, 4]
        for start, chunk in zip((0, 4), chunks, strict=True):
            (found,) = cache.get(start)
            for name in ("p", "log", "total", "top", "nll"):
                np.testing.assert_array_equal(getattr(found, name), getattr(chunk, name))


def test_open_state_writes_an_sqlite_database(settings: MeasureSettings) -> None:
    settings = replace(settings, models=(), chunks=replace(CHUNKS, limit=4))
    list(measure(settings))
    assert settings.state is not None
    with sqlite3.connect(settings.state) as database:
        assert database.execute("SELECT device, chunks > 4 FROM measured").fetchall() == [
            ("CPU", 1)
        ]

"""Quantization jobs: what a change of the inputs invalidates, and what a power failure leaves."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.support import RECORDED, quantize
from helpers.tiny_gguf import write_tiny
from minitron_core.errors import MinitronError
from minitron_core.gguf import open_gguf
from minitron_core.progress import Event
from minitron_quant.imatrix.files import read_imatrix, write_imatrix
from minitron_quant.levels import parse_levels
from minitron_quant.quantize import encode, level_files
from minitron_quant.quantize.journal import Journal, JournalContent
from minitron_quant.quantize.options import QuantizeOptions, parse_tensor_type
from minitron_quant.quantize.prepare import QuantizeSettings, prepare
from minitron_quant.quantize.run import LevelResult, run

LEVELS = ("Q4_0", "Q8_0")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny-F16.gguf")


def alter(path: Path, keep_time: bool = False) -> None:
    """Change a weight, but not the size."""
    stat, file = path.stat(), open_gguf(path)
    offset = file.data_offset + file.tensor("blk.1.ffn_up.weight").offset
    with path.open("r+b") as data:
        data.seek(offset)
        data.write(b"\x00\x3c")  # 1.0
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def kept(results: dict[str, LevelResult]) -> list[str]:
    return [name for name, result in results.items() if result.kept]


def test_run_keeps_files_of_a_source_with_another_time(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", *LEVELS)
    os.utime(source)
    again = quantize(source, tmp_path / "out", *LEVELS, threads=1)
    assert kept(again) == list(LEVELS)


def test_run_replaces_all_files_of_a_changed_source(source: Path, tmp_path: Path) -> None:
    before = quantize(source, tmp_path / "out", *LEVELS)
    alter(source)
    with pytest.raises(MinitronError, match="made from something else"):
        quantize(source, tmp_path / "out", *LEVELS)
    after = quantize(source, tmp_path / "out", *LEVELS, replace="outdated")
    assert kept(after) == []
    assert all(after[name].sha256 != before[name].sha256 for name in LEVELS)


def test_run_replaces_only_the_levels_that_an_option_changes(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", *LEVELS)
    # attn_v is q8_0 at Q8_0 anyway
    options = QuantizeOptions(tensor_types=(parse_tensor_type("attn_v=q8_0"),))
    again = quantize(source, tmp_path / "out", *LEVELS, options=options, replace="outdated")
    assert kept(again) == ["Q8_0"]


def test_run_replaces_all_files_of_a_changed_imatrix(nano_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    shutil.copy(RECORDED / "nano-llama.imatrix.gguf", path)
    quantize(nano_llama, tmp_path / "out", "Q4_0", imatrix=path)
    assert kept(quantize(nano_llama, tmp_path / "out", "Q4_0", imatrix=path)) == ["Q4_0"]
    matrix = read_imatrix(path)
    matrix.entries["blk.2.ffn_up.weight"].sums[:, 7] *= 2
    write_imatrix(path, matrix)
    again = quantize(nano_llama, tmp_path / "out", "Q4_0", imatrix=path, replace="outdated")
    assert kept(again) == []


class Stop(KeyboardInterrupt):
    """The end of a job at a chosen moment."""


def interrupted(source: Path, folder: Path, share: float, **more: Any) -> None:
    def listen(event: Event) -> None:
        if event.done > share * event.total:
            raise Stop

    settings = QuantizeSettings(source, tuple(parse_levels(LEVELS)), folder, **more)
    with pytest.raises(Stop):
        list(run(prepare(settings), listen))


@pytest.mark.parametrize("keep_time", [False, True])
def test_run_resumed_notices_a_changed_source(
    keep_time: bool, source: Path, tmp_path: Path
) -> None:
    interrupted(source, tmp_path / "out", 0.7)
    assert (tmp_path / "out" / ".tiny.quantize.journal").is_file()
    alter(source, keep_time)
    resumed = quantize(source, tmp_path / "out", *LEVELS)
    whole = quantize(source, tmp_path / "whole", *LEVELS)
    assert {n: r.sha256 for n, r in resumed.items()} == {n: r.sha256 for n, r in whole.items()}


def test_run_resumed_after_other_levels_loses_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 15)
    folder = tmp_path / "out"
    interrupted(source, folder, 0.7)
    quantize(source, folder, "Q5_0")
    seen: list[Event] = []
    settings = QuantizeSettings(source, tuple(parse_levels(LEVELS)), folder)
    list(run(prepare(settings), seen.append))
    weights = sum(info.n_elements for info in open_gguf(source).tensors)
    assert seen[0].total < 1.2 * weights  # of both levels, most was there
    names = {f"tiny-{level}.gguf" for level in (*LEVELS, "Q5_0")}
    assert {path.name for path in folder.iterdir()} == {*names, "tiny.manifest.json"}


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("more", [(), ("Q5_0",)])
def test_run_resumes_inside_a_tensor(
    measured: bool,
    more: tuple[str, ...],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 12)
    folder, levels = tmp_path / "out", (*LEVELS, *more)
    errors = {"errors": tmp_path / "errors.json"} if measured else {}
    interrupted(source, folder, 0.5, **errors)
    (done,) = {
        (level.tensors, bool(level.bytes))
        for level in Journal(folder / ".tiny.quantize.journal").read().levels.values()
    }
    assert done[1]
    first: list[tuple[str, int]] = []
    slabs = encode._slabs

    def watched(task: encode.EncodeTask, threads: int) -> Any:
        first.append((task.info.name, task.first_row))
        return slabs(task, threads)

    monkeypatch.setattr(encode, "_slabs", watched)
    resumed = quantize(source, folder, *levels, **errors)
    begun = [row for _, row in first if row]
    # errors are of all rows, and a level that was not in work has none of them
    assert len(begun) == (0 if measured or more else 1)
    whole = {"errors": tmp_path / "whole.json"} if measured else {}
    expected = quantize(source, tmp_path / "whole", *levels, **whole)
    assert {n: r.sha256 for n, r in resumed.items()} == {n: r.sha256 for n, r in expected.items()}
    if measured:
        assert errors["errors"].read_text() == whole["errors"].read_text()


def test_run_resumed_after_a_power_failure(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not brought to the disk before a journal was written is lost with the power."""
    on_disk: dict[str, int] = {}
    states: list[tuple[JournalContent, dict[str, int]]] = []
    sync, write = os.fdatasync, Journal.write

    def remember(handle: int) -> None:
        size = os.fstat(handle).st_size
        sync(handle)
        on_disk[Path(f"/proc/self/fd/{handle}").readlink().name] = size

    def record(journal: Journal, recorded: JournalContent) -> None:
        states.append((recorded, dict(on_disk)))
        write(journal, recorded)

    monkeypatch.setattr(os, "fdatasync", remember)
    monkeypatch.setattr(Journal, "write", record)
    monkeypatch.setattr(level_files, "_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 15)
    folder = tmp_path / "out"
    interrupted(source, folder, 0.8)
    recorded, sizes = states[len(states) // 2]
    assert any(0 < done.tensors < 20 for done in recorded.levels.values())
    assert any(done.bytes for recorded, _ in states for done in recorded.levels.values())
    for name, size in sizes.items():
        os.truncate(folder / name, size)
    write(Journal(folder / ".tiny.quantize.journal"), recorded)
    resumed = quantize(source, folder, *LEVELS)
    whole = quantize(source, tmp_path / "whole", *LEVELS)
    assert {n: r.sha256 for n, r in resumed.items()} == {n: r.sha256 for n, r in whole.items()}


def test_run_yields_levels_as_they_are_done_and_continues_where_iteration_stopped(
    source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    job = prepare(QuantizeSettings(source, tuple(parse_levels(LEVELS)), folder))
    results = run(job)
    first = next(results)
    assert first.level == LEVELS[0] and not first.kept
    assert [path.name for path in folder.glob("[!.]*.gguf")] == [first.path.name]
    results.close()  # type: ignore[attr-defined]
    manifest = json.loads((folder / "tiny.manifest.json").read_text())
    assert list(manifest["levels"]) == [first.level]
    again = list(run(job))
    assert [result.level for result in again] == list(LEVELS)
    assert [result.kept for result in again] == [True] + [False] * (len(LEVELS) - 1)
    whole = quantize(source, tmp_path / "whole", *LEVELS)
    assert {r.level: r.sha256 for r in again} == {n: r.sha256 for n, r in whole.items()}
    names = {f"tiny-{level}.gguf" for level in LEVELS} | {"tiny.manifest.json"}
    assert {path.name for path in folder.iterdir()} == names

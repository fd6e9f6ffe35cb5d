"""Quantization jobs: what is kept, resumed and refused, and what is written down."""

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from helpers.support import EXAMPLES, RECORDED, quantize, recorded
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import Damaged, MinitronError, OutOfResources, Usage
from minitron_core.gguf import TYPE_ID, open_gguf
from minitron_core.progress import Event
from minitron_engine.llama import devices
from minitron_engine.llama.binding import api
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.levels import level_named, parse_levels
from minitron_quant.quantize import encode, write_levels
from minitron_quant.quantize.options import QuantizeOptions, parse_tensor_type
from minitron_quant.quantize.prepare import QuantizeSettings, prepare
from minitron_quant.quantize.run import LevelResult, run
from minitron_quant.quantize.summary import summarize

LLAMA_IMATRIX = RECORDED / "nano-llama.imatrix.gguf"
CHEAP = ("Q4_0", "Q8_0", "Q4_K_M")


def test_run_again_writes_only_what_is_missing(short_llama: Path, tmp_path: Path) -> None:
    first = quantize(short_llama, tmp_path, *CHEAP)
    times = {name: result.path.stat().st_mtime_ns for name, result in first.items()}
    first["Q8_0"].path.unlink()
    again = quantize(short_llama, tmp_path, *CHEAP, "Q5_0")
    assert {name: result.kept for name, result in again.items()} == {
        "Q4_0": True,
        "Q8_0": False,
        "Q4_K_M": True,
        "Q5_0": False,
    }
    assert again["Q4_0"].path.stat().st_mtime_ns == times["Q4_0"]
    assert again["Q8_0"].sha256 == first["Q8_0"].sha256


def test_run_refuses_a_file_made_from_something_else(short_llama: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "nano-llama-Q4_0.gguf"
    foreign.write_text("mine")
    with pytest.raises(MinitronError, match="made from something else"):
        quantize(short_llama, tmp_path, "Q4_0")
    assert foreign.read_text() == "mine"
    result = quantize(short_llama, tmp_path, "Q4_0", replace="always")["Q4_0"]
    assert open_gguf(foreign).size == result.bytes


def test_run_with_another_option_replaces_the_file_only_on_request(
    short_llama: Path, tmp_path: Path
) -> None:
    quantize(short_llama, tmp_path, "Q4_0")
    options = QuantizeOptions(tensor_types=(parse_tensor_type("attn_v=Q8_0"),))
    with pytest.raises(MinitronError, match="made from something else"):
        quantize(short_llama, tmp_path, "Q4_0", options=options)
    path = quantize(short_llama, tmp_path, "Q4_0", options=options, replace="always")["Q4_0"].path
    assert open_gguf(path).tensor("blk.0.attn_v.weight").type == TYPE_ID["q8_0"]


def test_run_leaves_nothing_behind_for_values_that_are_not_finite(
    short_llama: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken-F16.gguf"
    shutil.copy(short_llama, broken)
    file = open_gguf(broken)
    offset = file.data_offset + file.tensor("blk.1.attn_k.weight").offset
    with broken.open("r+b") as data:
        data.seek(offset + 100)
        data.write(b"\x00\x7e")  # a float16 NaN
    out = tmp_path / "out"
    with pytest.raises(Damaged, match=r"blk\.1\.attn_k.*not finite"):
        quantize(broken, out, *CHEAP)
    assert list(out.iterdir()) == []


class Stop(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


def interrupt_after(share: float) -> Any:
    def listen(event: Event) -> None:
        if event.done > share * event.total:
            raise Stop

    return listen


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_run_continues_after_an_interruption(
    share: float, short_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 16)
    whole = quantize(short_llama, tmp_path / "whole", *CHEAP)
    settings = QuantizeSettings(short_llama, tuple(parse_levels(CHEAP)), tmp_path / "parts")
    with pytest.raises(Stop):
        list(run(prepare(settings), interrupt_after(share)))
    assert not list((tmp_path / "parts").glob("[!.]*.gguf"))
    seen: list[Event] = []
    results = list(run(prepare(settings), seen.append))
    assert [r.sha256 for r in results] == [whole[r.level].sha256 for r in results]
    if share > 0.5:
        left = sum(event.total for event in seen[:1])
        assert left < 0.8 * 3 * open_gguf(short_llama).size / 2  # most was there already
    left = {path.name for path in (tmp_path / "parts").iterdir()}
    assert left == {r.path.name for r in results} | {"nano-llama.manifest.json"}


def test_run_keeps_files_after_a_kill_before_the_manifest(
    short_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("minitron_quant.quantize.run._record", killed)
        with pytest.raises(Stop):
            quantize(short_llama, tmp_path, *CHEAP)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.gguf")}
    assert len(times) == 3
    results = quantize(short_llama, tmp_path, *CHEAP)
    assert {r.path.name: r.path.stat().st_mtime_ns for r in results.values()} == times
    assert all(result.kept for result in quantize(short_llama, tmp_path, *CHEAP).values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 9 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_run_continues_after_a_full_disk(
    short_llama: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = shutil.disk_usage(tmp_path)._replace(free=1 << 40)
    with monkeypatch.context() as patch:
        patch.setattr(write_levels.shutil, "disk_usage", lambda _: roomy)
        with pytest.raises(Exception) as caught:
            quantize(short_llama, small_disk, "Q4_0", "Q8_0", "Q5_0")
    assert getattr(caught.value, "exit_code", None) == 6
    assert not list(small_disk.glob("[!.]*.gguf"))
    # with room made, the same levels go on where they were
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    results = quantize(short_llama, small_disk, "Q4_0", "Q8_0", "Q5_0")
    whole = quantize(short_llama, tmp_path / "whole", "Q4_0", "Q8_0", "Q5_0")
    assert {n: r.sha256 for n, r in results.items()} == {n: r.sha256 for n, r in whole.items()}


def test_run_checks_the_disk_first(
    short_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(write_levels.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutOfResources, match="free"):
        quantize(short_llama, tmp_path / "full", *CHEAP)
    assert list((tmp_path / "full").iterdir()) == []


def test_run_locks_the_folder(short_llama: Path, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".nano-llama.quantize.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MinitronError, match="another minitron quantize"):
            quantize(short_llama, tmp_path, "Q4_0")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_refuses_a_folder_that_cannot_be_written(short_llama: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Exception) as caught:
        quantize(short_llama, tmp_path / "out", "Q4_0")
    assert getattr(caught.value, "exit_code", None) == 7


def test_prepare_refuses_the_source_as_output(short_llama: Path) -> None:
    with pytest.raises(Usage, match="the source itself"):
        quantize(short_llama, short_llama.parent, "F16")


def test_summarize_counts_shared_work(nano_llama: Path, tmp_path: Path) -> None:
    levels = tuple(parse_levels(["all"]))
    job = QuantizeSettings(nano_llama, levels, tmp_path, imatrix=LLAMA_IMATRIX)
    summary = summarize(prepare(job))
    assert len(summary["levels"]) == 27
    assert 0 < summary["weights_encoded"] < summary["weights_without_sharing"]
    assert summary["estimated_seconds"] > 0
    sizes = recorded("quantize-nano-llama.json")["levels"]
    for entry in summary["levels"]:
        # our file differs from llama.cpp's in a few keys only
        assert abs(entry["bytes"] - sizes[entry["level"]]["size"]) < 1024
        assert entry["bpw"] == pytest.approx(sizes[entry["level"]]["bpw"], abs=0.01)


def test_level_result_has_the_exact_size_and_hash(llama_levels: dict[str, LevelResult]) -> None:
    for result in llama_levels.values():
        assert result.path.stat().st_size == result.bytes
        assert hashlib.sha256(result.path.read_bytes()).hexdigest() == result.sha256


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano-llama as F16 in several shards."""
    path = tmp_path_factory.mktemp("shards") / "nano-llama-F16.gguf"
    settings = ConvertSettings(
        EXAMPLES / "nano-llama", path, outtype="f16", split_max_size=5_000_000
    )
    return convert(settings).paths[0]


def test_run_joins_shards_into_one_file(sharded: Path, nano_llama: Path, tmp_path: Path) -> None:
    joined = quantize(sharded, tmp_path, "Q4_0")["Q4_0"]
    assert joined.path.name == "nano-llama-Q4_0.gguf"
    whole = quantize(nano_llama, tmp_path / "whole", "Q4_0")["Q4_0"]
    assert joined.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("level", ["Q4_0", "Q4_K_M"])
def test_run_keep_split_makes_shards_as_the_installed_library(
    level: str, sharded: Path, tmp_path: Path
) -> None:
    options = QuantizeOptions(keep_split=True)
    ours = quantize(sharded, tmp_path / "ours", level, options=options)[level]
    devices.start()
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.keep_split = level_named(level).ftype, True
    target = tmp_path / f"nano-llama-{level}"
    assert api.llama_model_quantize(bytes(sharded), bytes(target), ctypes.byref(parameters)) == 0
    theirs = sorted(tmp_path.glob("*.gguf"))
    mine = sorted((tmp_path / "ours").glob("*.gguf"))
    assert [path.name for path in mine] == [path.name for path in theirs] and len(mine) > 2
    for our, their in zip(mine, theirs, strict=True):
        assert our.read_bytes() == their.read_bytes()
    assert ours.path == mine[0]
    assert quantize(sharded, tmp_path / "ours", level, options=options)[level].kept


def test_run_keep_split_continues_after_an_interruption(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 16)
    options = QuantizeOptions(keep_split=True)
    levels = tuple(parse_levels(["Q4_0", "Q8_0"]))
    settings = QuantizeSettings(sharded, levels, tmp_path / "parts", options=options)
    with pytest.raises(Stop):
        list(run(prepare(settings), interrupt_after(0.6)))
    list(run(prepare(settings)))
    quantize(sharded, tmp_path / "whole", "Q4_0", "Q8_0", options=options)
    for path in (tmp_path / "whole").glob("*.gguf"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_run_writes_the_encoding_errors(
    short_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 16)
    path = tmp_path / "errors.json"
    settings = QuantizeSettings(
        short_llama,
        tuple(parse_levels(["Q2_K", "Q8_0"])),
        tmp_path / "out",
        imatrix=LLAMA_IMATRIX,
        errors=path,
    )
    with pytest.raises(Stop):
        list(run(prepare(settings), interrupt_after(0.5)))
    list(run(prepare(settings)))
    written = path.read_text()
    list(run(prepare(settings)))  # all is up to date: what was measured stays
    assert path.read_text() == written
    errors = json.loads(written)["relative_errors"]
    name = "blk.1.ffn_up.weight"
    assert set(errors[name]) == {"q2_K", "q8_0"} and errors[name]["q8_0"] < errors[name]["q2_K"]
    source = open_gguf(short_llama)
    weight = source.data(source.tensor(name)).view(np.float16).astype(np.float64)
    file = open_gguf(tmp_path / "out" / "nano-llama-Q2_K.gguf")
    info = file.tensor(name)
    decoded = dequantize(np.array(file.data(info)), GGMLQuantizationType.Q2_K).ravel()
    importance = read_imatrix(LLAMA_IMATRIX).weights()[name][0].astype(np.float64)
    shape = (-1, info.shape[0])
    difference = ((decoded - weight) ** 2).reshape(shape) * importance
    expected = difference.sum() / (weight.reshape(shape) ** 2 * importance).sum()
    assert errors[name]["q2_K"] == pytest.approx(expected, rel=1e-5)


def test_run_writes_a_manifest_of_the_inputs(short_llama: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(leave_output=True)
    result = quantize(short_llama, tmp_path, "Q4_0", imatrix=LLAMA_IMATRIX, options=options)["Q4_0"]
    manifest = json.loads((tmp_path / "nano-llama.manifest.json").read_text())
    assert manifest["source"][0]["sha256"] == hashlib.sha256(short_llama.read_bytes()).hexdigest()
    assert manifest["imatrix"]["name"] == LLAMA_IMATRIX.name
    assert manifest["versions"]["llama_cpp_commit"] == "0c1e57098"
    level = manifest["levels"]["Q4_0"]
    assert level["options"] == {"leave_output_tensor": True}
    assert level["files"] == [
        {"name": result.path.name, "bytes": result.bytes, "sha256": result.sha256}
    ]
    assert str(tmp_path) not in json.dumps(manifest)

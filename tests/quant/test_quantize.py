"""Quantization: every tensor as llama-quantize encodes it, and jobs that survive anything."""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from llama_cpp import llama_cpp as api

from minitron_convert.convert import ConvertSettings, convert
from minitron_convert.gguf_file import TYPE, TYPE_ID, Gguf, KeyValue, TensorInfo, open_gguf
from minitron_engine import devices
from minitron_engine.errors import (
    Damaged,
    ImatrixNeeded,
    MinitronError,
    OutOfResources,
    Unsupported,
    Usage,
)
from minitron_engine.progress import Event
from minitron_quant.imatrix.files import read_imatrix, write_imatrix
from minitron_quant.levels import LEVELS, OTHER_LEVELS, level_named, parse_levels
from minitron_quant.quantize import batch, encode, plan, writing
from minitron_quant.quantize.batch import LevelResult, run
from minitron_quant.quantize.job import QuantizeSettings, model_name, prepare
from minitron_quant.quantize.options import QuantizeOptions, parse_override, parse_tensor_type
from minitron_quant.quantize.summary import summarize
from support import EXAMPLES, RECORDED, recorded

LLAMA_IMATRIX = RECORDED / "nano-llama.imatrix.gguf"
CHEAP = ("Q4_0", "Q8_0", "Q4_K_M")


def quantize(source: Path, folder: Path, *levels: str, **more: Any) -> dict[str, LevelResult]:
    settings = QuantizeSettings(source, tuple(parse_levels(levels)), folder, **more)
    return {result.level: result for result in run(prepare(settings))}


def hashes(file: Gguf) -> dict[str, tuple[str, str]]:
    return {
        info.name: (TYPE[info.type].name, hashlib.sha256(file.data(info)).hexdigest())
        for info in file.tensors
    }


def expected_hashes(entry: dict[str, Any], table: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: (kind, table[name][kind]) for name, kind in entry["types"].items()}


@pytest.mark.parametrize("level", [level.name for level in LEVELS])
@pytest.mark.parametrize("model", ["llama", "nemotron"])
def test_every_tensor_equals_llama_quantize(
    model: str,
    level: str,
    llama_levels: dict[str, LevelResult],
    nemotron_levels: dict[str, LevelResult],
    same_processor: None,
) -> None:
    results = llama_levels if model == "llama" else nemotron_levels
    recording = recorded(f"quantize-nano-{model}.json")
    wanted = expected_hashes(recording["levels"][level], recording["hashes"])
    assert hashes(open_gguf(results[level].path)) == wanted


def test_without_an_imatrix_too(nano_llama: Path, tmp_path: Path, same_processor: None) -> None:
    recording = recorded("quantize-nano-llama.json")
    plain = {k: v for k, v in recording["levels_without_imatrix"].items() if "refused" not in v}
    names = [name for name in plain if name in ("Q2_K", "IQ4_XS", "Q3_K_M", "Q4_0", "Q6_K")]
    results = quantize(nano_llama, tmp_path, *names)
    for name in names:
        wanted = expected_hashes(plain[name], recording["hashes_without_imatrix"])
        assert hashes(open_gguf(results[name].path)) == wanted


def library_quantize(source: Path, target: Path, level: str, imatrix: Path | None) -> None:
    """llama_model_quantize of the installed library, fed as llama-quantize feeds it."""
    devices.start()
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype = level_named(level).ftype
    entries = None
    if imatrix is not None:
        weights = read_imatrix(imatrix).weights()
        entries = (api.llama_model_imatrix_data * (len(weights) + 1))()
        for slot, (name, values) in zip(entries, weights.items(), strict=False):
            slot.name, slot.size = name.encode(), values.size
            slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = entries
    assert api.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(parameters)) == 0


@pytest.mark.parametrize("level", ["IQ2_XS", "Q2_K_S", "IQ3_M", "Q4_K_M", "Q5_1", "Q8_0"])
def test_tensors_equal_the_installed_library(
    level: str, nano_llama: Path, llama_levels: dict[str, LevelResult], tmp_path: Path
) -> None:
    library_quantize(nano_llama, tmp_path / "theirs.gguf", level, LLAMA_IMATRIX)
    assert hashes(open_gguf(llama_levels[level].path)) == hashes(
        open_gguf(tmp_path / "theirs.gguf")
    )


@pytest.mark.parametrize("level", ["Q4_0", "Q3_K_L", "BF16", "F32", "TQ2_0"])
def test_whole_files_equal_the_installed_library(
    level: str, nano_nemotron: Path, tmp_path: Path
) -> None:
    ours = quantize(nano_nemotron, tmp_path, level)[level].path
    library_quantize(nano_nemotron, tmp_path / "theirs.gguf", level, None)
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("level", [level for level in LEVELS if level.needs_imatrix])
def test_levels_that_need_an_imatrix_say_so(level: Any, nano_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ImatrixNeeded) as caught:
        prepare(QuantizeSettings(nano_llama, (level,), tmp_path))
    assert caught.value.exit_code == 5
    assert "minitron imatrix" in caught.value.hint


def test_an_imatrix_that_lacks_a_tensor_is_noticed(nano_llama: Path, tmp_path: Path) -> None:
    matrix = read_imatrix(LLAMA_IMATRIX)
    del matrix.entries["blk.2.ffn_up.weight"]
    write_imatrix(tmp_path / "holes.gguf", matrix)
    settings = QuantizeSettings(
        nano_llama, tuple(parse_levels(["IQ2_XS"])), tmp_path, imatrix=tmp_path / "holes.gguf"
    )
    with pytest.raises(ImatrixNeeded, match=r"blk\.2\.ffn_up"):
        prepare(settings)


def test_an_imatrix_of_another_model_is_noticed(nano_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"made for another model|values for"):
        quantize(nano_llama, tmp_path, "Q4_K_M", imatrix=RECORDED / "nano-nemotron.imatrix.gguf")


def test_running_again_does_only_what_is_missing(nano_llama: Path, tmp_path: Path) -> None:
    first = quantize(nano_llama, tmp_path, *CHEAP)
    times = {name: result.path.stat().st_mtime_ns for name, result in first.items()}
    first["Q8_0"].path.unlink()
    again = quantize(nano_llama, tmp_path, *CHEAP, "Q5_0")
    assert {name: result.kept for name, result in again.items()} == {
        "Q4_0": True,
        "Q8_0": False,
        "Q4_K_M": True,
        "Q5_0": False,
    }
    assert again["Q4_0"].path.stat().st_mtime_ns == times["Q4_0"]
    assert again["Q8_0"].sha256 == first["Q8_0"].sha256


def test_a_file_made_from_something_else_is_not_touched(nano_llama: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "nano-llama-Q4_0.gguf"
    foreign.write_text("mine")
    with pytest.raises(MinitronError, match="made from something else"):
        quantize(nano_llama, tmp_path, "Q4_0")
    assert foreign.read_text() == "mine"
    result = quantize(nano_llama, tmp_path, "Q4_0", replace="always")["Q4_0"]
    assert open_gguf(foreign).size == result.bytes


def test_another_option_makes_the_file_anew(nano_llama: Path, tmp_path: Path) -> None:
    quantize(nano_llama, tmp_path, "Q4_0")
    options = QuantizeOptions(tensor_types=(parse_tensor_type("attn_v=Q8_0"),))
    with pytest.raises(MinitronError, match="made from something else"):
        quantize(nano_llama, tmp_path, "Q4_0", options=options)
    path = quantize(nano_llama, tmp_path, "Q4_0", options=options, replace="always")["Q4_0"].path
    assert open_gguf(path).tensor("blk.0.attn_v.weight").type == TYPE_ID["q8_0"]


def test_options_of_types(nano_llama: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(
        pure=True, output_type=TYPE_ID["q8_0"], embedding_type=TYPE_ID["q5_0"]
    )
    file = open_gguf(quantize(nano_llama, tmp_path, "Q4_0", options=options)["Q4_0"].path)
    kinds = {info.name: TYPE[info.type].name for info in file.tensors}
    assert kinds["output.weight"] == "q8_0" and kinds["token_embd.weight"] == "q5_0"
    matrices = {name for name in kinds if name.startswith("blk.") and "norm" not in name}
    assert {kinds[name] for name in matrices} == {"q4_0"}


def test_overrides_keep_the_sign(nano_llama: Path, tmp_path: Path) -> None:
    overrides = tuple(
        map(parse_override, ("a.int=int:-3", "a.big=int:7", "a.flag=bool:true", "a.text=str:x y"))
    )
    options = QuantizeOptions(overrides=overrides)
    file = open_gguf(quantize(nano_llama, tmp_path, "Q4_0", options=options)["Q4_0"].path)
    assert [file.get(f"a.{key}") for key in ("int", "big", "flag", "text")] == [-3, 7, True, "x y"]


@pytest.mark.parametrize("text", ["", "a", "a=b", "a=int", "a=int:x", "a=bool:yes", "=int:1"])
def test_overrides_that_make_no_sense(text: str) -> None:
    with pytest.raises(Usage):
        parse_override(text)


@pytest.mark.parametrize("text", ["attn_v", "=q8_0", "attn_v=", "attn_v=q99", "(=q8_0"])
def test_tensor_types_that_make_no_sense(text: str) -> None:
    with pytest.raises(Usage):
        parse_tensor_type(text)


def test_patterns_that_match_nothing_are_refused(nano_llama: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(tensor_types=(("atn_v", TYPE_ID["q8_0"]),))
    with pytest.raises(Usage, match="matches no tensor"):
        quantize(nano_llama, tmp_path, "Q4_0", options=options)
    with pytest.raises(Usage, match="atn_v"):
        quantize(nano_llama, tmp_path, "Q4_0", imatrix=LLAMA_IMATRIX, exclude=("atn_v",))


def test_excluded_weights_are_encoded_without_importance(nano_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "excluded"
    path = quantize(nano_llama, folder, "Q4_K_M", imatrix=LLAMA_IMATRIX, exclude=("ffn_up",))[
        "Q4_K_M"
    ].path
    plain = quantize(nano_llama, tmp_path / "plain", "Q4_K_M")["Q4_K_M"].path
    ours, without = hashes(open_gguf(path)), hashes(open_gguf(plain))
    assert ours["blk.1.ffn_up.weight"] == without["blk.1.ffn_up.weight"]
    assert ours["blk.1.ffn_gate.weight"] != without["blk.1.ffn_gate.weight"]


def test_a_quantized_source_needs_permission(
    llama_levels: dict[str, LevelResult], tmp_path: Path
) -> None:
    source = llama_levels["Q8_0"].path
    with pytest.raises(Unsupported, match="already quantized"):
        quantize(source, tmp_path, "Q4_0")
    options = QuantizeOptions(allow_requantize=True)
    result = quantize(source, tmp_path, "Q4_0", options=options)["Q4_0"]
    library = tmp_path / "theirs.gguf"
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = level_named("Q4_0").ftype, True
    assert api.llama_model_quantize(bytes(source), bytes(library), ctypes.byref(parameters)) == 0
    assert hashes(open_gguf(result.path)) == hashes(open_gguf(library))


@pytest.mark.parametrize("kind", ["q4_K", "iq2_xs", "q8_K"])
def test_a_type_that_a_row_cannot_hold(
    kind: str,
) -> None:
    # llama.cpp falls back by itself; a type forced on the embedding or output it does not check
    odd = TensorInfo("token_embd.weight", (100 if kind != "q8_K" else 256, 4), 1, 0, 800)
    with pytest.raises(Unsupported, match="cannot hold"):
        plan.check_type(odd, TYPE_ID[kind], QuantizeOptions(), level_named("Q4_0"))
    with pytest.raises(Usage, match="no tensor can be given"):
        parse_tensor_type("attn_v=q8_k")


def test_values_that_are_no_numbers_leave_nothing_behind(nano_llama: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken-F16.gguf"
    shutil.copy(nano_llama, broken)
    file = open_gguf(broken)
    offset = file.data_offset + file.tensor("blk.3.attn_k.weight").offset
    with broken.open("r+b") as data:
        data.seek(offset + 100)
        data.write(b"\x00\x7e")  # a float16 NaN
    out = tmp_path / "out"
    with pytest.raises(Damaged, match=r"blk\.3\.attn_k.*no numbers"):
        quantize(broken, out, *CHEAP)
    assert list(out.iterdir()) == []


def test_small_slabs_give_the_same_bytes(
    nano_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantize(nano_llama, tmp_path / "a", *CHEAP)
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 5000)
    parts = quantize(nano_llama, tmp_path / "b", *CHEAP, threads=3)
    assert {n: r.sha256 for n, r in whole.items()} == {n: r.sha256 for n, r in parts.items()}


class Stop(KeyboardInterrupt):
    """Ctrl-C at a chosen moment."""


def interrupt_after(share: float) -> Any:
    def listen(event: Event) -> None:
        if event.done > share * event.total:
            raise Stop

    return listen


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_an_interrupted_job_continues(
    share: float, nano_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 16)
    whole = quantize(nano_llama, tmp_path / "whole", *CHEAP)
    settings = QuantizeSettings(nano_llama, tuple(parse_levels(CHEAP)), tmp_path / "parts")
    with pytest.raises(Stop):
        run(prepare(settings), interrupt_after(share))
    assert not list((tmp_path / "parts").glob("[!.]*.gguf"))
    seen: list[Event] = []
    results = run(prepare(settings), seen.append)
    assert [r.sha256 for r in results] == [whole[r.level].sha256 for r in results]
    if share > 0.5:
        left = sum(event.total for event in seen[:1])
        assert left < 0.8 * 3 * open_gguf(nano_llama).size / 2  # most was there already
    left = {path.name for path in (tmp_path / "parts").iterdir()}
    assert left == {r.path.name for r in results} | {"nano-llama.manifest.json"}


def test_kill_9_loses_nothing_that_was_committed(nano_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from minitron_quant.levels import parse_levels\n"
        "from minitron_quant.quantize import writing\n"
        "from minitron_quant.quantize.batch import run\n"
        "from minitron_quant.quantize.job import QuantizeSettings, prepare\n"
        "writing._COMMIT_SECONDS = 0.0\n"
        "if __name__ == '__main__':\n"
        "    levels = tuple(parse_levels(['Q3_K_M', 'Q5_K_M']))\n"
        "    settings = QuantizeSettings(Path(sys.argv[1]), levels, Path(sys.argv[2]), threads=1)\n"
        "    run(prepare(settings))\n"
    )
    script = tmp_path / "job.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, script, nano_llama, folder])
    journal = folder / ".nano-llama.quantize.journal"
    deadline = time.monotonic() + 60
    while not journal.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    results = quantize(nano_llama, folder, "Q3_K_M", "Q5_K_M")
    whole = quantize(nano_llama, tmp_path / "whole", "Q3_K_M", "Q5_K_M")
    assert {n: r.sha256 for n, r in results.items()} == {n: r.sha256 for n, r in whole.items()}


def test_killed_between_the_files_and_the_manifest(
    nano_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(batch, "_record", killed)
        with pytest.raises(Stop):
            quantize(nano_llama, tmp_path, *CHEAP)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.gguf")}
    assert len(times) == 3
    results = quantize(nano_llama, tmp_path, *CHEAP)
    assert {r.path.name: r.path.stat().st_mtime_ns for r in results.values()} == times
    assert all(result.kept for result in quantize(nano_llama, tmp_path, *CHEAP).values())


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


def test_a_disk_that_fills_up_midway(
    nano_llama: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = shutil.disk_usage(tmp_path)._replace(free=1 << 40)
    with monkeypatch.context() as patch:
        patch.setattr(writing.shutil, "disk_usage", lambda _: roomy)
        with pytest.raises(Exception) as caught:
            quantize(nano_llama, small_disk, "Q4_0", "Q8_0", "Q5_0")
    assert getattr(caught.value, "exit_code", None) == 6
    assert not list(small_disk.glob("[!.]*.gguf"))
    # with room made, the same levels go on where they were
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    results = quantize(nano_llama, small_disk, "Q4_0", "Q8_0", "Q5_0")
    whole = quantize(nano_llama, tmp_path / "whole", "Q4_0", "Q8_0", "Q5_0")
    assert {n: r.sha256 for n, r in results.items()} == {n: r.sha256 for n, r in whole.items()}


def test_a_full_disk_is_said_before_the_work(
    nano_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutOfResources, match="free"):
        quantize(nano_llama, tmp_path / "full", *CHEAP)
    assert list((tmp_path / "full").iterdir()) == []


def test_two_jobs_on_one_folder(nano_llama: Path, tmp_path: Path) -> None:
    import fcntl

    with (tmp_path / ".nano-llama.quantize.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MinitronError, match="another minitron quantize"):
            quantize(nano_llama, tmp_path, "Q4_0")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(nano_llama: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Exception) as caught:
        quantize(nano_llama, tmp_path / "out", "Q4_0")
    assert getattr(caught.value, "exit_code", None) == 7


def test_the_source_is_never_the_target(nano_llama: Path) -> None:
    with pytest.raises(Usage, match="the source itself"):
        quantize(nano_llama, nano_llama.parent, "F16")


def test_the_summary_counts_shared_work(nano_llama: Path, tmp_path: Path) -> None:
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
        assert entry["bits_per_weight"] == pytest.approx(sizes[entry["level"]]["bpw"], abs=0.01)


def test_predicted_sizes_are_exact(llama_levels: dict[str, LevelResult]) -> None:
    for result in llama_levels.values():
        assert result.path.stat().st_size == result.bytes
        assert hashlib.sha256(result.path.read_bytes()).hexdigest() == result.sha256


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nano-llama-F16.gguf", "nano-llama"),
        ("Width-4.5B-BF16-00001-of-00003.gguf", "Width-4.5B"),
        ("model.f32.gguf", "model"),
        ("Thing-Q8_0.gguf", "Thing-Q8_0"),
    ],
)
def test_model_names(name: str, expected: str) -> None:
    assert model_name(Path(name)) == expected


def test_level_names() -> None:
    assert len(parse_levels(["all"])) == 27
    assert [level.name for level in parse_levels(["q4_k", "Q4_K_M", "iq1_s"])] == [
        "Q4_K_M",
        "IQ1_S",
    ]
    assert len({level.ftype for level in LEVELS + OTHER_LEVELS}) == len(LEVELS + OTHER_LEVELS)
    with pytest.raises(Unsupported) as caught:
        parse_levels(["Q4_K_X"])
    assert "Q4_K" in caught.value.hint and caught.value.exit_code == 4


def test_importance_is_by_expert(tmp_path: Path) -> None:
    rows, columns, experts = 4, 256, 3
    values = np.random.default_rng(1).standard_normal((experts, rows, columns)).astype(np.float32)
    weights = np.random.default_rng(2).random((experts, columns)).astype(np.float32)
    info = TensorInfo("blk.0.ffn_up_exps.weight", (columns, rows, experts), 0, 0, values.nbytes)
    kind = TYPE_ID["q4_K"]
    job = encode.Job(info, values.reshape(-1).view(np.uint8), (kind,), weights)
    (slab,) = encode.encode([job], 2)
    for expert in range(experts):
        alone = TensorInfo("w", (columns, rows), 0, 0, values[0].nbytes)
        one = encode.Job(
            alone, values[expert].reshape(-1).view(np.uint8), (kind,), weights[expert : expert + 1]
        )
        (expected,) = encode.encode([one], 1)
        size = expected.blocks[kind].size
        got = slab.blocks[kind][expert * size : (expert + 1) * size]
        np.testing.assert_array_equal(got, expected.blocks[kind])


def test_keyvalue_overrides_come_last(nano_llama: Path, tmp_path: Path) -> None:
    override = KeyValue.of("general.name", 8, "Renamed")
    options = QuantizeOptions(overrides=(override,))
    file = open_gguf(quantize(nano_llama, tmp_path, "Q4_0", options=options)["Q4_0"].path)
    assert list(file.metadata)[-1] == "general.name" and file.get("general.name") == "Renamed"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano-llama as F16 in several shards."""
    path = tmp_path_factory.mktemp("shards") / "nano-llama-F16.gguf"
    settings = ConvertSettings(
        EXAMPLES / "nano-llama", path, outtype="f16", split_max_size=5_000_000
    )
    return convert(settings).paths[0]


def test_shards_become_one_file(sharded: Path, nano_llama: Path, tmp_path: Path) -> None:
    joined = quantize(sharded, tmp_path, "Q4_0")["Q4_0"]
    assert joined.path.name == "nano-llama-Q4_0.gguf"
    whole = quantize(nano_llama, tmp_path / "whole", "Q4_0")["Q4_0"]
    assert joined.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("level", ["Q4_0", "Q4_K_M"])
def test_kept_shards_equal_the_installed_library(level: str, sharded: Path, tmp_path: Path) -> None:
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


def test_interrupted_shards_continue(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 16)
    options = QuantizeOptions(keep_split=True)
    levels = tuple(parse_levels(["Q4_0", "Q8_0"]))
    settings = QuantizeSettings(sharded, levels, tmp_path / "parts", options=options)
    with pytest.raises(Stop):
        run(prepare(settings), interrupt_after(0.6))
    run(prepare(settings))
    quantize(sharded, tmp_path / "whole", "Q4_0", "Q8_0", options=options)
    for path in (tmp_path / "whole").glob("*.gguf"):
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


def test_errors_tell_how_much_each_type_hurts(
    nano_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 16)
    path = tmp_path / "errors.json"
    settings = QuantizeSettings(
        nano_llama,
        tuple(parse_levels(["Q2_K", "Q8_0"])),
        tmp_path / "out",
        imatrix=LLAMA_IMATRIX,
        errors=path,
    )
    with pytest.raises(Stop):
        run(prepare(settings), interrupt_after(0.5))
    run(prepare(settings))
    errors = json.loads(path.read_text())["relative_errors"]
    name = "blk.2.ffn_up.weight"
    assert set(errors[name]) == {"q2_K", "q8_0"} and errors[name]["q8_0"] < errors[name]["q2_K"]
    source = open_gguf(nano_llama)
    weight = source.data(source.tensor(name)).view(np.float16).astype(np.float64)
    file = open_gguf(tmp_path / "out" / "nano-llama-Q2_K.gguf")
    info = file.tensor(name)
    decoded = dequantize(np.array(file.data(info)), GGMLQuantizationType.Q2_K).ravel()
    importance = read_imatrix(LLAMA_IMATRIX).weights()[name][0].astype(np.float64)
    shape = (-1, info.shape[0])
    difference = ((decoded - weight) ** 2).reshape(shape) * importance
    expected = difference.sum() / (weight.reshape(shape) ** 2 * importance).sum()
    assert errors[name]["q2_K"] == pytest.approx(expected, rel=1e-5)


def test_the_manifest_tells_what_was_made_from_what(nano_llama: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(leave_output=True)
    result = quantize(nano_llama, tmp_path, "Q4_0", imatrix=LLAMA_IMATRIX, options=options)["Q4_0"]
    manifest = json.loads((tmp_path / "nano-llama.manifest.json").read_text())
    assert manifest["source"][0]["sha256"] == hashlib.sha256(nano_llama.read_bytes()).hexdigest()
    assert manifest["imatrix"]["name"] == LLAMA_IMATRIX.name
    assert manifest["versions"]["llama_cpp_commit"] == "0c1e57098"
    level = manifest["levels"]["Q4_0"]
    assert level["options"] == {"leave_output_tensor": True}
    assert level["files"] == [
        {"name": result.path.name, "bytes": result.bytes, "sha256": result.sha256}
    ]
    assert str(tmp_path) not in json.dumps(manifest)


def test_layers_without_an_entry_are_named(nano_llama: Path, tmp_path: Path) -> None:
    matrix = read_imatrix(LLAMA_IMATRIX)
    del matrix.entries["blk.2.ffn_up.weight"]
    write_imatrix(tmp_path / "holes.gguf", matrix)
    levels = tuple(parse_levels(["Q4_0"]))
    job = prepare(QuantizeSettings(nano_llama, levels, tmp_path, imatrix=tmp_path / "holes.gguf"))
    assert "blk.2.ffn_up.weight" in job.notes[0]
    whole = prepare(QuantizeSettings(nano_llama, levels, tmp_path, imatrix=LLAMA_IMATRIX))
    assert whole.notes == ()

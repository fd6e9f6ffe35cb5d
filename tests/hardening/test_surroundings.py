"""What happens to files, the clock, memory and the system's limits while a command is at work."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hardening import workshop
from hardening.workshop import COMMANDS, Material
from helpers.support import EXAMPLES, RECORDED, quantize
from helpers.tiny_gguf import write_tiny
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import MinitronError
from minitron_core.progress import Event
from minitron_quant.levels import parse_levels
from minitron_quant.quantize import encode
from minitron_quant.quantize.prepare import QuantizeSettings, prepare
from minitron_quant.quantize.run import run

LEVELS = ("Q4_0", "Q8_0")
MINITRON = (sys.executable, "-m", "minitron_cli")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 1 << 14)
    return write_tiny(tmp_path / "tiny-F16.gguf")


def halfway(source: Path, folder: Path, do: Callable[[], object]) -> None:
    """Quantize, and do something in the middle of it."""
    once = [do]

    def listen(event: Event) -> None:
        if event.done > 0.5 * event.total and once:
            once.pop()()

    list(run(prepare(QuantizeSettings(source, tuple(parse_levels(LEVELS)), folder)), listen))
    assert not once


def alter(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\1")


def replace(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    alter(other)
    other.replace(path)


@pytest.mark.parametrize("change", [alter, replace])
def test_a_source_that_changes_midway(
    change: Callable[[Path], None], source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    with pytest.raises(MinitronError, match="changed while it was read"):
        halfway(source, folder, lambda: change(source))
    assert list(folder.iterdir()) == []
    whole = quantize(source, tmp_path / "whole", *LEVELS)
    again = quantize(source, folder, *LEVELS)
    assert {n: r.sha256 for n, r in again.items()} == {n: r.sha256 for n, r in whole.items()}


def test_a_source_that_vanishes_midway(source: Path, tmp_path: Path) -> None:
    whole = quantize(source, tmp_path / "whole", *LEVELS)
    halfway(source, tmp_path / "out", source.unlink)  # it is open, so it is read to its end
    for result in whole.values():
        made = tmp_path / "out" / result.path.name
        assert made.read_bytes() == result.path.read_bytes()


def test_an_output_folder_that_vanishes_midway(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(Exception) as caught:
        halfway(source, folder, lambda: shutil.rmtree(folder))
    assert getattr(caught.value, "exit_code", None) in (3, 7)
    assert not folder.exists()
    assert len(quantize(source, folder, *LEVELS)) == 2


@pytest.mark.harden
def test_stages_whose_files_are_taken_away(
    minitron: Any, material: Material, tmp_path: Path
) -> None:
    words = [str(word) for word in COMMANDS["run"].words(material, tmp_path / "job")]
    assert minitron(*words, "-q").code == 0
    whole = workshop.results(tmp_path / "job")
    for name in [name for name in whole if name.endswith(".gguf")]:
        (tmp_path / "job" / name).unlink()
        assert minitron(*words, "-q", "--resume").code == 0
        assert workshop.results(tmp_path / "job") == whole, name
    text = material.held_out.read_text()
    try:
        material.held_out.unlink()
        gone = minitron(*words, "-q", "--resume")
        assert gone.code == 3 and "held-out.txt" in gone.err
    finally:
        material.held_out.write_text(text)


def test_a_clock_that_jumps(
    minitron: Any, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years forward, and back to before the beginning."""
    words = COMMANDS["imatrix"].words(material, tmp_path)
    assert minitron(*words).code == 0
    whole = (tmp_path / "m.gguf").read_bytes()
    draw, true_time = random.Random(1), time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + draw.uniform(-3e9, 3e9))
    assert minitron(*words, "--force").code == 0
    assert (tmp_path / "m.gguf").read_bytes() == whole
    made = minitron("quantize", material.model, "Q4_0", "-d", tmp_path, "--json").document
    assert 0 <= made["levels"][0]["seconds"] < 100
    again = minitron("quantize", material.model, "Q4_0", "-d", tmp_path, "--json").document
    assert again["levels"][0]["kept"] is True


ALL = ("all", "--imatrix", RECORDED / "nano-nemotron.imatrix.gguf", "--threads", 2)


def test_few_files_may_be_open(material: Material, tmp_path: Path) -> None:
    """27 outputs at once: the limit is raised where that is allowed, and told where it is not."""
    words = ["quantize", material.model, *ALL, "-d", tmp_path]
    code, err = workshop.limited(words, RLIMIT_NOFILE=(24, 24))
    assert code == 1 and "Too many open files" in err and "Traceback" not in err
    assert "ulimit" in err
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".gguf", ".partial")]


@pytest.mark.harden
def test_few_files_may_be_open_at_first(material: Material, tmp_path: Path) -> None:
    words = ["quantize", material.model, *ALL, "-d", tmp_path]
    assert workshop.limited(words, RLIMIT_NOFILE=(24, 4096))[0] == 0
    assert len(list(tmp_path.glob("*.gguf"))) == 27


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody can write to, with a model in it."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder)
    if os.geteuid() != 0:
        folder.chmod(0o500)
        yield folder
        folder.chmod(0o700)
        return
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system is not permitted here, and root may write anywhere")
    subprocess.run(("mount", "-o", "remount,ro", folder), check=True)
    yield folder
    subprocess.run(("umount", folder), check=True)


def test_a_folder_that_cannot_be_written(
    minitron: Any, material: Material, read_only: Path
) -> None:
    for name in ("convert", "imatrix", "quantize", "gptq", "ppl", "tasks"):
        ran = minitron(*COMMANDS[name].words(material, read_only))
        assert ran.code == 7, (name, ran.code, ran.err)
        # a note on the text may come first
        assert re.search(r"^error: .*\n(hint: .*\n)?\Z", ran.err, re.M), ran.err
        assert str(read_only) in ran.err and "Traceback" not in ran.err
    assert list(read_only.iterdir()) == []


def test_a_conversion_whose_source_is_cut_midway(tmp_path: Path) -> None:
    source = tmp_path / "nano"
    shutil.copytree(EXAMPLES / "nano-nemotron", source)
    weights = source / "model.safetensors"

    def cut(event: Any) -> None:
        if weights.stat().st_size > 1_000_000:
            os.truncate(weights, 1_000_000)

    with pytest.raises(Exception) as caught:
        convert(ConvertSettings(source, tmp_path / "out.gguf"), cut)
    assert getattr(caught.value, "exit_code", None) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["nano"]

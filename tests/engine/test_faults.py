"""A file that is cut short while it is mapped is one line and an exit code, not a bus error."""

import mmap
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minitron_engine import faults

# two threads that meet it at once: one of them tells, and once
_READ = """
import mmap, os, sys, threading
from minitron_cli import main
from minitron_engine import faults
faults.install(main._leave)
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
os.truncate(sys.argv[1], int(sys.argv[2]))
sys.stdout.write("a beginning")
start = threading.Barrier(2)
def read():
    start.wait()
    mapped[-10:]
threading.Thread(target=read).start()
read()
"""


@pytest.mark.parametrize("left", [0, 1, mmap.PAGESIZE])
def test_a_mapped_file_that_is_cut_short(left: int, tmp_path: Path) -> None:
    path = tmp_path / "a file.gguf"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    words = [sys.executable, "-c", _READ, str(path), str(left)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (8, "a beginning")
    assert ended.stderr.startswith(f"error: {path} was cut short while it was in use\nhint: ")
    assert len(ended.stderr.splitlines()) == 2


def test_a_signal_without_a_file_that_was_cut() -> None:
    code = _READ.partition("with open")[0] + f"os.kill(os.getpid(), {signal.SIGBUS.value})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 8
    assert ended.stderr.startswith("error: a file cannot be read any more")


def test_only_files_that_are_mapped_beyond_their_end_are_named(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("whole", "cut", "gone", "replaced")]
    maps = []
    for path in paths:
        path.write_bytes(bytes(3 * mmap.PAGESIZE - 1))
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert faults.cut_files() == []
    os.truncate(paths[1], 2 * mmap.PAGESIZE)
    paths[2].unlink()
    other = tmp_path / "other"
    other.write_bytes(b"short")
    other.replace(paths[3])
    assert faults.cut_files() == [paths[1]]
    for mapped in maps:
        mapped.close()
    assert faults.cut_files() == []
    assert faults.cut_files(tmp_path / "no such list") == []

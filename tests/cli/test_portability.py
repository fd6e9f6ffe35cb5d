"""The whole way where a system lacks what only Linux has: modules, calls and /proc."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import EXAMPLES, ROOT

# without fcntl and resource (Windows), sched_getaffinity (macOS), /proc and /sys (neither has it);
# each command is a start of its own for what it imports
PROGRAM = """
import builtins, io, os, sys
for name in ("fcntl", "resource"):
    sys.modules[name] = None
del os.sched_getaffinity

def missing(path):
    return isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(
        ("/proc", "/sys")
    )

def hiding(opened):
    def open_(path, *more, **options):
        if missing(path):
            raise FileNotFoundError(2, "No such file or directory", path)
        return opened(path, *more, **options)
    return open_

builtins.open = io.open = hiding(io.open)
os.open = hiding(os.open)
from minitron_cli.startup import main
main()
"""


def minitron(folder: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    paths = os.pathsep.join(str(ROOT / part) for part in ("convert", "quant", "src"))
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        env=os.environ | {"PYTHONPATH": paths},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_commands_run_without_what_only_linux_has(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes((EXAMPLES / "held-out.txt").read_bytes()[:4000])
    full = tmp_path / "nano-F16.gguf"
    steps = (
        ("convert", EXAMPLES / "nano-llama", "-o", full, "--outtype", "f16"),
        ("quantize", full, "Q4_0"),
        ("ppl", full.with_name("nano-Q4_0.gguf"), "-f", text, "-c", "64", "--chunks", "2"),
        ("generate", full.with_name("nano-Q4_0.gguf"), "The old", "-n", "2", "--temp", "0"),
    )
    for words in steps:
        ran = minitron(tmp_path, *words, "--json")
        assert ran.returncode == 0, (words, ran.stderr)
        assert json.loads(ran.stdout), words


@pytest.mark.parametrize("name", ["fcntl", "resource"])
def test_locks_and_limits_do_without_their_modules(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_core import cpu_limits, file_lock

    monkeypatch.setattr(file_lock if name == "fcntl" else cpu_limits, name, None)
    assert cpu_limits.available_memory() > 0
    with file_lock.exclusive(tmp_path / "lock"), file_lock.exclusive(tmp_path / "other"):
        assert {path.name for path in tmp_path.iterdir()} == {"lock", "other"}

"""A file that is cut short while it is mapped is one line and an exit code, not a bus error."""

import mmap
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minitron_core.errors import OutOfResources
from minitron_engine.llama import context
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_engine.process import fatal_signals

# two threads that meet it at once: one of them tells, and once
_READ = """
import mmap, os, sys, threading
from minitron_cli import main
from minitron_engine.process import aborts, fatal_signals
aborts.on_abort(main._leave)
fatal_signals.install()
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
def test_sigbus_of_a_truncated_file_names_it(left: int, tmp_path: Path) -> None:
    path = tmp_path / "a file.gguf"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    words = [sys.executable, "-c", _READ, str(path), str(left)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (8, "a beginning")
    assert ended.stderr.startswith(f"error: {path} was cut short while it was in use\nhint: ")
    assert len(ended.stderr.splitlines()) == 2


_BEGIN = _READ.partition("with open")[0] + "import ctypes\n"
_EXIT = """
leave = threading.Thread(target=ctypes.CDLL(None).exit, args=(1,))
leave.start()
leave.join()
"""
_THROW = """
from minitron_engine.llama import devices
from minitron_engine.llama.library import ggml
devices.start()
ggml()[sys.argv[1]](11)
"""
_CALLBACK = """
from minitron_engine.process.interrupts import end_cleanly
end_cleanly()
def lack():
    raise MemoryError
ctypes.CFUNCTYPE(None)(lack)()
"""


def out_of_memory(code: str, *words: str) -> None:
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (6, "")
    assert re.fullmatch(r"error: there is not enough memory\nhint: .*\n", ended.stderr)


def test_exit_by_a_library_says_out_of_memory() -> None:
    out_of_memory(_BEGIN + _EXIT)


def test_exit_by_python_keeps_its_code() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _BEGIN + "sys.exit(3)"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (3, "")


@pytest.mark.parametrize("thrown", ["_ZSt17__throw_bad_allocv", "_ZSt20__throw_system_errori"])
def test_aborts_of_uncaught_cpp_exceptions_say_out_of_memory(thrown: str) -> None:
    out_of_memory(_BEGIN + _THROW, thrown)


_LIMIT = """
import resource, sys
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
"""


def test_sigsegv_without_address_space_says_out_of_memory() -> None:
    out_of_memory(_LIMIT + _BEGIN + "ctypes.string_at(8)", "200")


def test_sigsegv_with_memory_left_stays_a_crash() -> None:
    words = [sys.executable, "-c", _LIMIT + _BEGIN + "ctypes.string_at(8)", "4000"]
    assert subprocess.run(words, capture_output=True).returncode == -signal.SIGSEGV


def test_callback_without_memory_ends_the_process() -> None:
    out_of_memory(_BEGIN + _CALLBACK)


def test_decode_without_memory_raises_out_of_resources(
    nano_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ContextSettings(n_ctx=64, n_batch=64)
    with (
        open_model(ModelSettings(nano_llama)) as model,
        context.open_context(model, settings) as opened,
    ):
        monkeypatch.setattr(context.api, "llama_decode", lambda *_: -2)
        with pytest.raises(OutOfResources, match="not enough memory"):
            opened.decode(Batch(1))


def test_sigbus_without_a_truncated_file_says_unreadable() -> None:
    code = f"{_BEGIN}os.kill(os.getpid(), {signal.SIGBUS.value})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 8
    assert ended.stderr.startswith("error: a file cannot be read any more")


def test_cut_files_names_only_files_mapped_beyond_their_end(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("whole", "cut", "gone", "replaced")]
    maps = []
    for path in paths:
        path.write_bytes(bytes(3 * mmap.PAGESIZE - 1))
        with path.open("rb") as file:
            maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    assert fatal_signals.cut_files() == []
    os.truncate(paths[1], 2 * mmap.PAGESIZE)
    paths[2].unlink()
    other = tmp_path / "other"
    other.write_bytes(b"short")
    other.replace(paths[3])
    assert fatal_signals.cut_files() == [paths[1]]
    for mapped in maps:
        mapped.close()
    assert fatal_signals.cut_files() == []
    assert fatal_signals.cut_files(tmp_path / "no such list") == []

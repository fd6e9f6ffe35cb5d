"""Where llama.cpp ends the process, the user reads one line, and scripts an exit code."""

import struct
import subprocess
import sys
from pathlib import Path

from minitron_core.errors import Damaged
from minitron_engine.process import aborts

_ABORT = """
import sys
from minitron_cli import main
from minitron_engine.llama import devices
from minitron_engine.process import aborts
from minitron_engine.llama.library import ggml
aborts.on_abort(main._leave)
devices.start()
sys.stdout.write("a beginning")
ggml().ggml_abort(b"ggml-rpc.cpp", 566, b"Remote RPC server crashed")
"""

_LOAD = """
import sys
from pathlib import Path
from minitron_cli import main
from minitron_engine.process import aborts
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
aborts.on_abort(main._leave)
open_model(ModelSettings(Path(sys.argv[1]))).__enter__()
"""


def test_aborts_show_one_line_and_an_exit_code() -> None:
    ended = subprocess.run([sys.executable, "-c", _ABORT], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (7, "a beginning")
    assert ended.stderr.startswith("error: an RPC server stopped answering")
    assert len(ended.stderr.splitlines()) == 2


def test_aborts_on_a_damaged_file_say_damaged(nano_llama: Path, tmp_path: Path) -> None:
    key = b"llama.block_count"
    head, found, rest = nano_llama.read_bytes().partition(key)
    none = tmp_path / "none.gguf"
    none.write_bytes(head + found + rest[:4] + struct.pack("<I", 0) + rest[8:])
    # without the check of the header that commands make first
    ended = subprocess.run([sys.executable, "-c", _LOAD, none], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (8, "")
    assert ended.stderr.startswith("error: llama.cpp cannot load none.gguf: GGML_ASSERT(")
    assert len(ended.stderr.splitlines()) == 1


def test_explained_uses_the_innermost_explanation() -> None:
    reason = "ggml.c:12: GGML_ASSERT(a: b) failed"
    plain = aborts.explained(reason)
    assert (str(plain), plain.exit_code) == ("llama.cpp aborted: GGML_ASSERT(a: b) failed", 1)
    with aborts.explaining(Damaged):
        assert isinstance(aborts.explained(reason), Damaged)
        assert aborts.explained("rpc.cpp:1: Remote RPC server crashed").exit_code == 7
    assert not isinstance(aborts.explained(reason), Damaged)

"""Locks on files: one writer at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from minitron_core.errors import MinitronError, NotFound
from minitron_core.file_lock import exclusive, open_locked

_TRY = """
import sys
from pathlib import Path
from minitron_core.file_lock import open_locked
try:
    open_locked(Path(sys.argv[1]), create=True)
except BlockingIOError:
    print("held")
else:
    print("free")
"""


def other_process(path: Path) -> str:
    words = [sys.executable, "-c", _TRY, str(path)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def test_open_locked_keeps_other_processes_out(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with open_locked(path, create=True) as file:
        assert other_process(path) == "held"
        file.write(b"kept")
    assert other_process(path) == "free"
    with open_locked(path, create=False) as file:
        assert file.read() == b"kept"


def test_open_locked_needs_the_file_unless_it_creates_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_locked(tmp_path / "a", create=False)


def test_exclusive_stops_a_second_job_and_removes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with exclusive(path, "run"):
        with (
            pytest.raises(MinitronError, match=f"another minitron run is working on {tmp_path}"),
            exclusive(path, "run"),
        ):
            pass
        assert path.exists()
    assert not path.exists()
    with pytest.raises(NotFound), exclusive(tmp_path / "none" / "lock"):
        pass

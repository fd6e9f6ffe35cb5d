"""What memory a process may take: its limits, not only the machine's."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from minitron_core import cpu_limits

_TELL = "from minitron_core.cpu_limits import available_memory; print(available_memory())"


def group(folder: Path, names: tuple[str, str], limit: str, used: int, files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{files}\nfile 9\n")


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_the_groups_around_a_process_of_version_2(tmp_path: Path) -> None:
    group(tmp_path / "user" / "job", V2, "max", 10, "inactive_file 5")
    group(tmp_path / "user", V2, "1000", 700, "inactive_file 50")
    found = list(cpu_limits._free_of(tmp_path, "/user/job", v2=True))
    assert found == [350]  # the root of the machine has no such files


def test_a_container_that_sees_its_name_outside(tmp_path: Path) -> None:
    group(tmp_path, V1, "1000", 1200, "total_inactive_file 100")
    assert list(cpu_limits._free_of(tmp_path, "/docker/abc", v2=False)) == [0]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_limited_address_space() -> None:
    limit = 700 << 20
    told = subprocess.run(
        [sys.executable, "-c", _TELL],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 < int(told.stdout) < limit - (10 << 20)

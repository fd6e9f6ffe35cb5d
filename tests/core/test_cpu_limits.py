"""The processors and the memory that a process may use, by all limits that apply to it."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.support import EXAMPLES
from minitron_core import cpu_limits

# what a container with a quota of half a processor reads; conftest.py sets another for this process
_WITH_QUOTA = f"""
import os
from pathlib import Path
real = Path.read_text
told = {{"/proc/self/cgroup": "0::/job\\n", "/sys/fs/cgroup/cpu.max": "50000 100000\\n"}}
Path.read_text = lambda path, *more, **named: told.get(str(path)) or real(path, *more, **named)
os.sched_getaffinity = lambda _process: set(range(64))
from minitron_convert import convert, encode_stream
pools = []
class Pool(encode_stream.ThreadPoolExecutor):
    def __init__(self, workers, **named):
        pools.append(workers)
        super().__init__(workers, **named)
encode_stream.ThreadPoolExecutor = Pool
os.chdir(os.environ["FOLDER"])
convert.convert(convert.ConvertSettings(Path({str(EXAMPLES / "nano-llama")!r})))
print(pools)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
def test_convert_uses_no_more_threads_than_the_quota_of_its_cgroup(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOLDER", str(tmp_path_factory.mktemp("out")))
    ran = subprocess.run(
        [sys.executable, "-c", _WITH_QUOTA], check=True, capture_output=True, text=True
    )
    assert ran.stdout.strip() == "[1]"


_TELL = "from minitron_core.cpu_limits import available_memory; print(available_memory())"


def group(folder: Path, names: tuple[str, str], limit: str, used: int, files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{files}\nfile 9\n")


V2 = ("memory.max", "memory.current")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_free_of_cgroup_reads_parents_of_version_2(tmp_path: Path) -> None:
    group(tmp_path / "user" / "job", V2, "max", 10, "inactive_file 5")
    group(tmp_path / "user", V2, "1000", 700, "inactive_file 50")
    found = list(cpu_limits.free_of_cgroup(tmp_path, "/user/job", v2=True))
    assert found == [350]  # the root of the machine has no such files


def test_free_of_cgroup_skips_a_name_of_the_host(tmp_path: Path) -> None:
    group(tmp_path, V1, "1000", 1200, "total_inactive_file 100")
    assert list(cpu_limits.free_of_cgroup(tmp_path, "/docker/abc", v2=False)) == [0]


@pytest.mark.parametrize(
    ("v2", "parent", "own"),
    [
        (True, {"cpu.max": "150000 100000\n"}, {"cpu.max": "max 100000\n"}),
        (
            False,
            {"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "100000\n"},
            {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"},
        ),
    ],
)
def test_quota_of_cgroup_reads_parents_and_rounds_up(
    v2: bool, parent: dict[str, str], own: dict[str, str], tmp_path: Path
) -> None:
    for folder, files in ((tmp_path / "user", parent), (tmp_path / "user" / "job", own)):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    assert list(cpu_limits.quota_of_cgroup(tmp_path, "/user/job", v2=v2)) == [2]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_available_memory_is_below_a_limited_address_space() -> None:
    limit = 700 << 20
    told = subprocess.run(
        [sys.executable, "-c", _TELL],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0 < int(told.stdout) < limit - (10 << 20)

"""The processors that a process may use: by its affinity, and by its cgroup's quota."""

import subprocess
import sys

import pytest

from helpers.support import EXAMPLES

# what a container with a quota of half a processor reads; conftest.py sets another for this process
_WITH_QUOTA = f"""
import os
from pathlib import Path
real = Path.read_text
Path.read_text = lambda path, *more, **named: (
    "50000 100000\\n" if str(path) == "/sys/fs/cgroup/cpu.max" else real(path, *more, **named)
)
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

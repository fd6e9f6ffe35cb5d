"""Run a command and measure its whole process tree: time, memory beyond mapped files, bytes.

Linux only. With a limit the command runs in a memory cgroup of its own, which counts its page
cache as well, as a container does; that needs the right to make one. Pages that are in the cache
already belong to whoever read them first, so the cache is emptied before.
"""

import contextlib
import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_INTERVAL_S = 0.1


@dataclass(frozen=True)
class Measured:
    """Times in seconds; memory in bytes.

    anonymous: the largest sum over the tree of what no file backs; resident: mapped files too;
    read and written: bytes that reached the disk; cgroup_peak: None without a cgroup.
    """

    code: int
    wall: float
    cpu: float
    anonymous: int
    resident: int
    read: int
    written: int
    cgroup_peak: int | None
    output: str


class Watch:
    """The peaks and totals of a process and its children, by sampling /proc."""

    def __init__(self, root: int) -> None:
        self.root = root
        self.anonymous = self.resident = 0
        self._io: dict[int, tuple[int, int]] = {}

    def sample(self) -> None:
        """Look at every process of the tree once."""
        anonymous = resident = 0
        for pid in _tree(self.root):
            with contextlib.suppress(OSError, ValueError, KeyError):
                status = _fields(Path(f"/proc/{pid}/status"))
                own = status["RssAnon"] + status["RssShmem"]
                anonymous += own * 1024
                resident += (own + status["RssFile"]) * 1024
                io = _fields(Path(f"/proc/{pid}/io"))
                self._io[pid] = io["read_bytes"], io["write_bytes"]
        self.anonymous = max(self.anonymous, anonymous)
        self.resident = max(self.resident, resident)

    @property
    def io(self) -> tuple[int, int]:
        """Bytes read from and written to the disk so far."""
        return sum(read for read, _ in self._io.values()), sum(w for _, w in self._io.values())


def _fields(path: Path) -> dict[str, int]:
    """The numbers of a file of /proc by name."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {
        words[0].rstrip(":"): int(words[1])
        for words in lines
        if len(words) > 1 and words[1].isdigit()
    }


def _tree(root: int) -> Iterator[int]:
    yield root
    for tasks in Path(f"/proc/{root}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in tasks.read_text().split():
                yield from _tree(int(child))


@contextlib.contextmanager
def memory_cgroup(limit: int | None) -> Iterator[Path | None]:
    """A cgroup with a limit in bytes, removed at the end; None for no limit."""
    if limit is None:
        yield None
        return
    os.sync()
    _DROP_CACHES.write_text("1")
    parent = _V1 if _V1.is_dir() else _V2
    group = parent / f"minitron-benchmark-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if parent == _V1 else "memory.max")).write_text(str(limit))
    try:
        yield group
    finally:
        group.rmdir()


def _peak(group: Path | None) -> int | None:
    if group is None:
        return None
    names = ("memory.max_usage_in_bytes", "memory.peak")
    return next(int((group / name).read_text()) for name in names if (group / name).exists())


def measure(
    command: Sequence[str | Path | int], limit: int | None = None, kill_after: float | None = None
) -> Measured:
    """Run a command to its end, or send SIGKILL to its process group after some seconds."""
    with memory_cgroup(limit) as group, tempfile.TemporaryFile() as captured:

        def enter() -> None:
            if group is not None:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=captured,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=enter,
        )
        watch = Watch(process.pid)
        while process.poll() is None:
            watch.sample()
            if kill_after is not None and time.perf_counter() - started > kill_after:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            time.sleep(_INTERVAL_S)
        wall = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        captured.seek(0)
        output = captured.read().decode(errors="replace")
        read, written = watch.io
        code = process.returncode
        return Measured(
            code, wall, cpu, watch.anonymous, watch.resident, read, written, _peak(group), output
        )

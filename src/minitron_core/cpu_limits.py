"""How many processors and how much memory this process may use, by all limits that apply."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # not on Windows: no limits of a process are known there
    resource = None  # type: ignore[assignment]


def default_threads() -> int:
    """How many processors this process may use, by its affinity and its cgroup's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(allowed or 1, _cgroup_quota()))


def available_memory() -> int:
    """Bytes that this process may still allocate, by the system, its cgroups and its own limit."""
    own = free_address_space()
    limits = [] if own is None else [own]
    return min(1 << 62, *limits, *_free_of_system(), *_free_of_groups())


def _free_of_system() -> Iterator[int]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: what the machine has is the only number at hand
        with suppress(AttributeError, OSError, ValueError):
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return
    with suppress(ValueError):
        yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail"))


def _free_of_groups() -> Iterator[int]:
    """For this process's cgroup and its parents, in version 2 and in version 1."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, group = line.split(":", 2)
            if names in ("", "memory"):
                yield from free_of_cgroup(Path(f"/sys/fs/cgroup/{names}"), group, v2=not names)


def free_of_cgroup(root: Path, group: str, *, v2: bool) -> Iterator[int]:
    """Bytes that are left of each limit on a cgroup and its parents, below the mount `root`."""
    limit, used, given_back = (
        ("memory.max", "memory.current", "inactive_file ")
        if v2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
    )
    # a container may see the group's name on the host: paths that do not exist are skipped
    inner = root / group.lstrip("/")
    for folder in (inner, *inner.parents):
        with suppress(OSError, ValueError):  # no such file, or no limit ("max")
            most = int((folder / limit).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            files = sum(int(line.split()[1]) for line in lines if line.startswith(given_back))
            yield max(most - int((folder / used).read_text()) + files, 0)
        if folder == root:
            return


def _cgroup_quota() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return 1 << 16  # no quota, or "max"


def free_address_space() -> int | None:
    """Bytes of address space that this process may still map; None without a limit (ulimit -v)."""
    if resource is None:
        return None
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY:
        return None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return None
    return max(most - pages * resource.getpagesize(), 0)

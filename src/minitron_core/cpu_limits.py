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
    for root, group, v2 in _groups("memory"):
        yield from free_of_cgroup(root, group, v2=v2)


def free_of_cgroup(root: Path, group: str, *, v2: bool) -> Iterator[int]:
    """Bytes that are left of each limit on a cgroup and its parents, below the mount `root`."""
    limit, used, given_back = (
        ("memory.max", "memory.current", "inactive_file ")
        if v2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
    )
    for folder in _with_parents(root, group):
        with suppress(OSError, ValueError):  # no such file, or no limit ("max")
            most = int((folder / limit).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            files = sum(int(line.split()[1]) for line in lines if line.startswith(given_back))
            yield max(most - int((folder / used).read_text()) + files, 0)


def _cgroup_quota() -> int:
    """The processors of the smallest quota that applies; a great number where none does."""
    quotas = (
        quota for root, group, v2 in _groups("cpu") for quota in quota_of_cgroup(root, group, v2=v2)
    )
    return min(quotas, default=1 << 16)


def quota_of_cgroup(root: Path, group: str, *, v2: bool) -> Iterator[int]:
    """The processors, rounded up, of each quota on a cgroup and its parents, below `root`."""
    names = ("cpu.max",) if v2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
    for folder in _with_parents(root, group):
        # no such file, or no quota ("max", or -1)
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            if int(quota) > 0:
                yield max(1, math.ceil(int(quota) / int(period)))


def _groups(controller: str) -> Iterator[tuple[Path, str, bool]]:
    """Of this process: the mount, the path of its cgroup below it, and whether it is version 2."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, group = line.split(":", 2)
            if not names:
                yield Path("/sys/fs/cgroup"), group, True
            elif controller in names.split(","):
                yield Path("/sys/fs/cgroup", controller), group, False


def _with_parents(root: Path, group: str) -> Iterator[Path]:
    """The folder of a cgroup and those above it, down to the mount.

    A container may see the group's name on the host: then paths do not exist.
    """
    inner = root / group.lstrip("/")
    for folder in (inner, *inner.parents):
        yield folder
        if folder == root:
            return


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

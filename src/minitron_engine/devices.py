"""The devices of this build of llama.cpp, and what this process may use of the machine."""

import ctypes
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minitron_engine import aborts, log
from minitron_engine.binding import api
from minitron_engine.faults import free_address_space
from minitron_engine.library import ggml, registry

GpuLayers = int | Literal["auto", "all"]

_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator"}
ALL_LAYERS = 999


@dataclass(frozen=True)
class Device:
    """One device as ggml sees it; memory in bytes."""

    name: str
    description: str
    kind: str
    free: int
    total: int


def start() -> None:
    """Initialize the backends and take over llama.cpp's log; harmless when repeated."""
    log.install()
    aborts.install(ggml())
    api.llama_backend_init()


def devices() -> list[Device]:
    """Every device that the installed build can use, the CPU included."""
    start()
    found = []
    for index in range(registry().ggml_backend_dev_count()):
        handle = registry().ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml().ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        kind = _KINDS.get(ggml().ggml_backend_dev_type(handle), "other")
        name = ggml().ggml_backend_dev_name(handle).decode()
        description = ggml().ggml_backend_dev_description(handle).decode().strip()
        found.append(Device(name, description, kind, free.value, total.value))
    return found


def gpus() -> list[Device]:
    """The devices that layers can be offloaded to."""
    return [device for device in devices() if device.kind in ("gpu", "igpu")]


def missing_gpu() -> str:
    """One line for the user where a GPU, or a build with CUDA, is there without the other."""
    if gpus():
        return ""
    if registry().ggml_backend_reg_by_name(b"CUDA"):
        reason = log.last_error("ggml_cuda_init: ") or "no GPU is present"
        if not Path("/dev/nvidiactl").exists():
            reason = f"this machine has no NVIDIA driver ({reason})"
        return f"llama.cpp is built with CUDA, but nothing is offloaded: {reason}"
    if shutil.which("nvidia-smi") and Path("/dev/nvidiactl").exists():
        return "an NVIDIA GPU is present, but this build has no CUDA: make install CUDA=1"
    return ""


def default_threads() -> int:
    """The processors that this process may use: its affinity, and its cgroup's quota if smaller."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(allowed or 1, _cgroup_quota()))


def available_memory() -> int:
    """Bytes that this process may still take: the system's, its cgroups', or its own limit's."""
    own = free_address_space()
    limits = [] if own is None else [own]
    return min(1 << 62, *limits, *_free_of_system(), *_free_of_groups())


def _free_of_system() -> Iterator[int]:
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        yield from (1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvail"))


def _free_of_groups() -> Iterator[int]:
    """Of this process's cgroup and those around it, in version 2 and in version 1."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, group = line.split(":", 2)
            if names in ("", "memory"):
                yield from _free_of(Path(f"/sys/fs/cgroup/{names}"), group, v2=not names)


def _free_of(root: Path, group: str, *, v2: bool) -> Iterator[int]:
    limit, used, given_back = (
        ("memory.max", "memory.current", "inactive_file ")
        if v2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
    )
    # a container may see the group's name outside of it: what is not there is passed over
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

"""The devices of this build of llama.cpp, and how many layers to put on them."""

import ctypes
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minitron_engine import log
from minitron_engine.binding import api
from minitron_engine.library import ggml, registry

GpuLayers = int | Literal["auto", "all"]

_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator"}
ALL_LAYERS = 999
# what compute buffers, the CUDA context and fragmentation take besides weights and KV cache;
# llama.cpp's own -fit keeps the same margin free on every device
_MARGIN = 1 << 30


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


def missing_gpu_build() -> str:
    """One line for the user if this machine has an NVIDIA GPU that the build cannot use."""
    if gpus() or not (shutil.which("nvidia-smi") and Path("/dev/nvidiactl").exists()):
        return ""
    return "an NVIDIA GPU is present, but this build of llama.cpp has no CUDA: make install CUDA=1"


def layers_that_fit(weights: int, layers: int, cache: int, free: int) -> int:
    """How many of a model's layers fit into `free` bytes, KV cache included.

    weights and cache are the bytes of the whole model; the output layer counts as one more.
    """
    per_layer = (weights + cache) / (layers + 1)
    room = free - _MARGIN
    return 0 if room <= 0 else min(layers + 1, math.floor(room / per_layer))


def resolve_layers(
    wanted: GpuLayers, weights: int, layers: int, cache: int, available: list[Device]
) -> int:
    """The number of layers to offload: as asked, or as many as these GPUs have free memory for."""
    if not available or wanted == 0:
        return 0
    if wanted == "all":
        return ALL_LAYERS
    if isinstance(wanted, int):
        return wanted
    fitting = sum(layers_that_fit(weights, layers, cache, device.free) for device in available)
    return ALL_LAYERS if fitting > layers else fitting


def default_threads() -> int:
    """The processors that this process may use: its affinity, and its cgroup's quota if smaller."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(allowed or 1, _cgroup_quota()))


def available_memory() -> int:
    """Bytes of memory that this process may still take: the system's, or its cgroup's."""
    free = [1 << 62]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text()
        used = Path("/sys/fs/cgroup/memory.current").read_text()
        free.append(max(int(limit) - int(used), 0))
    except (OSError, ValueError):
        pass  # no such file, or no limit ("max")
    return min(free)


def _cgroup_quota() -> int:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return 1 << 16  # no quota, or "max"

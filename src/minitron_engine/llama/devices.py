"""The devices of this build of llama.cpp, and what this process may use of the machine."""

import ctypes
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minitron_engine.llama import log
from minitron_engine.llama.binding import api
from minitron_engine.llama.library import ggml, registry
from minitron_engine.process import aborts

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

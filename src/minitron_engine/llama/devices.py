"""The devices of this build of llama.cpp, and those that a placement selects."""

import ctypes
import shutil
from pathlib import Path
from typing import NamedTuple

from minitron_core.errors import Usage
from minitron_engine.llama import log
from minitron_engine.llama.binding import api
from minitron_engine.llama.library import ggml, registry
from minitron_engine.llama.settings import Placement
from minitron_engine.process import aborts

_KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accelerator"}


class Device(NamedTuple):
    """One device as ggml describes it; memory in bytes."""

    name: str
    description: str
    kind: str
    free: int
    total: int


def start() -> None:
    """Initialize the backends, llama.cpp's log and its aborts; harmless when repeated."""
    log.install()
    aborts.install(ggml())
    api.llama_backend_init()


def devices() -> list[Device]:
    """Every device that the installed build can use, including the CPU."""
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


def select_gpus(placement: Placement) -> list[Device]:
    """The GPUs that layers may go to. Raises Usage for a name or a number that does not exist."""
    found = _in_llama_cpp_order(gpus())
    if placement.names is not None:
        by_name = {gpu.name: gpu for gpu in found}
        for name in placement.names:
            if name not in by_name:
                raise Usage(
                    f"there is no device {name}",
                    f"the devices are {', '.join(by_name) or 'the CPU alone'}",
                )
        found = [by_name[name] for name in placement.names]
    number = placement.main_gpu
    if number and number >= len(found):
        raise Usage(f"there is no GPU {number}: there are {len(found)}, counted from 0")
    return found[number : number + 1] if placement.split_mode == "none" else found


def _in_llama_cpp_order(found: list[Device]) -> list[Device]:
    """RPC servers first, so that the output is computed here; integrated GPUs only alone."""
    remote = [gpu for gpu in found if gpu.name.startswith("RPC")]
    local = [gpu for gpu in found if not gpu.name.startswith("RPC")]
    return remote + ([gpu for gpu in local if gpu.kind == "gpu"] or local)


def missing_gpu() -> str:
    """One line for the user if there is a GPU but no CUDA build, or the reverse; else empty."""
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

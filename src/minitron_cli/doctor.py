"""The state of this installation: versions, devices, disk, environment."""

import os
import platform
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from minitron_cli import __version__
from minitron_core.cpu_limits import default_threads

# names of variables that change what happens; values of secrets are never shown
_VARIABLES = (
    *("HF_HOME", "HF_HUB_OFFLINE", "NO_COLOR", "CUDA_VISIBLE_DEVICES"),
    *("LLAMA_CPP_LIB_PATH", "MINITRON_NATIVE", "MINITRON_THREADS", "MINITRON_GPU_LAYERS"),
    *("MINITRON_CTX", "MINITRON_CACHE_TYPE_K", "MINITRON_CACHE_TYPE_V"),
)


def versions() -> dict[str, str]:
    """Versions of everything that decides a result."""
    from minitron_engine.llama.library import LLAMA_CPP_COMMIT

    return {
        "minitron": __version__,
        "llama-cpp-python": version("llama_cpp_python"),
        "llama.cpp": LLAMA_CPP_COMMIT,
        "gguf": version("gguf"),
        "numpy": version("numpy"),
        "python": platform.python_version(),
    }


def examine(folder: Path) -> dict[str, Any]:
    """The facts for a bug report; `problems` lists what is wrong."""
    from minitron_engine.llama import devices
    from minitron_engine.llama.binding import api
    from minitron_engine.llama.library import PINNED_BINDING, ggml

    ggml()
    found = devices.devices()
    problems = []
    if version("llama_cpp_python") != PINNED_BINDING:
        problems.append(f"llama-cpp-python {PINNED_BINDING} is needed: make install")
    missing = devices.missing_gpu()
    if missing:
        problems.append(missing)
    return {
        "versions": versions(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "executable": sys.executable,
        "devices": [device._asdict() for device in found],
        "gpu_offload": bool(devices.gpus()) and bool(api.llama_supports_gpu_offload()),
        "rpc": bool(api.llama_supports_rpc()),
        "cuda_compiler": shutil.which("nvcc") or "",
        "threads": default_threads(),
        "encoders": _encoders(),
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "hub_cache": _hub_cache(),
        "hub_token": bool(os.environ.get("HF_TOKEN")),
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "problems": problems,
    }


def _encoders() -> dict[str, Any]:
    """Which kernels quantize; why none, or for which types not."""
    from minitron_core.gguf import TYPE
    from minitron_core.kernels import kernels
    from minitron_quant.kernels.encode import encoder

    loaded = kernels()
    return {
        "instructions": loaded.instructions,
        "reason": loaded.reason,
        "types_of_ggml": [TYPE[number].name for number in encoder().failed()],
    }


def _hub_cache() -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    return str(HF_HUB_CACHE)

"""What work takes besides time: the process's peak memory, and energy where the machine tells."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

_SELF = Path("/proc/self")
_RAPL = Path("/sys/class/powercap")
_RESET_PEAK = "5"  # proc(5): clear_refs
Joules = dict[str, float]


def reset_peak_memory() -> bool:
    """Let `peak_memory` count from now on; False where the system cannot, as on macOS."""
    try:
        (_SELF / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def peak_memory() -> int:
    """The largest resident set of this process in bytes, mapped weights included."""
    try:
        lines = (_SELF / "status").read_text().splitlines()
    except OSError:
        if resource is None:
            return 0
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most  # macOS counts bytes
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def energy_counters(*, gpus: bool) -> list[Callable[[], Joules]]:
    """The counters that this process may read; each call gives joules since some fixed moment.

    They count a whole package or card, whoever uses it. RAPL for processors (usually root's
    alone), NVML for NVIDIA cards from Volta on.
    """
    found: list[Callable[[], Joules]] = []
    domains = [path for path in sorted(_RAPL.glob("intel-rapl:[0-9]*")) if path.name.count(":") < 2]
    for folder in domains:
        try:
            _read_rapl(folder)
        except (OSError, ValueError):
            continue
        found.append(lambda folder=folder: _read_rapl(folder))  # type: ignore[misc]
    return [*found, *(_nvml_counters() if gpus else ())]


def _read_rapl(folder: Path) -> Joules:
    name = (folder / "name").read_text().strip()
    return {name: int((folder / "energy_uj").read_text()) / 1e6}


def _nvml_counters() -> list[Callable[[], Joules]]:
    library = _nvml()
    if library is None:
        return []
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    readers = []
    for index in range(count.value):
        device = ctypes.c_void_p()
        library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        if _read_nvml(library, device) is not None:
            readers.append(_nvml_reader(library, device, f"gpu-{index}"))
    return readers


def _nvml_reader(library: Any, device: ctypes.c_void_p, name: str) -> Callable[[], Joules]:
    return lambda: {name: _read_nvml(library, device) or 0.0}


def _read_nvml(library: Any, device: ctypes.c_void_p) -> float | None:
    millijoules = ctypes.c_ulonglong()
    status = library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))
    return millijoules.value / 1e3 if status == 0 else None


@cache
def _nvml() -> Any:
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    return library if library.nvmlInit_v2() == 0 else None

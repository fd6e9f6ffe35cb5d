"""What ends the process from below: a mapped file that is cut short, and libraries that exit.

Reason: the next look at such a file is a signal, SIGBUS. A handler of Python's would never run: the
instruction that failed is tried again for ever. So the system calls this one itself, in the thread
that met it. OpenBLAS and OpenMP leave with exit() where they get no memory or no thread, and
OpenBLAS now and then uses memory that it did not get: SIGSEGV. With these handlers each of them is
one sentence and an exit code (benchmarks/results/hardening.md); without, a crash.
"""

import atexit
import mmap
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minitron_core.cpu_limits import free_address_space
from minitron_core.errors import Damaged, MinitronError
from minitron_engine.process import aborts

_kept: list[Any] = []  # the system holds the pointers for the life of the process
# of address space: what libraries ask for at once is less
_LITTLE_BYTES = 256 << 20


def install() -> None:
    """Call the handler of `aborts` in all these cases; harmless when repeated.

    A SIGSEGV is taken for a lack of memory only where address space is limited, and nearly used up.
    Where a system has no such signal, or another C library, it is left as it is.
    """
    if _kept or os.name != "posix":
        return
    import ctypes

    system = ctypes.CDLL(None)
    _watch_signal(system, "SIGBUS", lambda: aborts.end(lambda: explained(cut_files())))
    if free_address_space() is not None:
        _watch_signal(system, "SIGSEGV", lambda: _meet_segmentation(system))
    if hasattr(system, "gnu_get_libc_version"):
        _watch_exit(system)


def _watch_signal(system: Any, name: str, meet: Callable[[], None]) -> None:
    import ctypes

    number = getattr(signal, name, None)
    if number is not None:
        _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: meet()))
        system.signal(int(number), _kept[-1])


def _meet_segmentation(system: Any) -> None:
    free = free_address_space()
    if free is not None and free < _LITTLE_BYTES:
        aborts.end(aborts.no_memory)
    system.signal(int(signal.SIGSEGV), None)  # as ever: it comes again at once


def _watch_exit(system: Any) -> None:
    # a function of Python's must not be called when Python is gone: it is taken back before
    import ctypes

    key = ctypes.c_char()
    leaving: list[bool] = []

    def leave(_: object) -> None:
        if not leaving:
            aborts.end(aborts.no_memory)

    def forget() -> None:
        leaving.append(True)
        system["__cxa_finalize"](ctypes.byref(key))

    _kept.extend((ctypes.CFUNCTYPE(None, ctypes.c_void_p)(leave), key))
    system["__cxa_atexit"](_kept[-2], None, ctypes.byref(key))
    atexit.register(forget)


def explained(cut: list[Path]) -> MinitronError:
    """The error for memory that cannot be read, given the files that may be why."""
    if cut:
        return Damaged(
            f"{cut[0]} was cut short while it was in use",
            "make or download it again, and then repeat this command",
        )
    return Damaged(
        "a file cannot be read any more that was in use",
        "see whether its disk or network folder still works, and then repeat this command",
    )


def cut_files(maps: Path = Path("/proc/self/maps")) -> list[Path]:
    """Files that this process has mapped beyond their present end, by name; none where unknown."""
    try:
        lines = maps.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
    found = {Path(parts[5]) for line in lines if _is_cut(parts := line.split(maxsplit=5))}
    return sorted(found)


def _is_cut(parts: list[str]) -> bool:
    # first-last permissions offset device inode name
    # libraries are mapped privately, and some reach beyond their end
    if len(parts) < 6 or not parts[1].endswith("s") or not parts[5].startswith("/"):
        return False
    first, last = (int(end, 16) for end in parts[0].split("-"))
    try:
        file = Path(parts[5]).stat()
    except OSError:  # renamed or deleted: then what is mapped is still there
        return False
    mapped = int(parts[2], 16) + last - first
    return stat.S_ISREG(file.st_mode) and mapped - file.st_size >= mmap.PAGESIZE

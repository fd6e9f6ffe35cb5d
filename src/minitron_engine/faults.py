"""A mapped file that is cut short while it is in use: the next look at it is a signal, SIGBUS.

A handler of Python's would never run: the instruction that failed is tried again for ever. So the
system calls this one itself, in the thread that met it, and the process ends there.
"""

import mmap
import signal
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minitron_engine.errors import Damaged, MinitronError

_kept: list[Any] = []  # the system holds the pointer for the life of the process
_told = threading.Lock()  # several threads may meet it at once; one tells


def install(listener: Callable[[MinitronError], None]) -> None:
    """Call `listener`, which must end the process, where mapped memory cannot be read any more.

    Where a system has no such signal nothing is installed. It takes effect once.
    """
    number = getattr(signal, "SIGBUS", None)
    if number is None or _kept:
        return
    import ctypes

    def tell(_number: int) -> None:
        _told.acquire()
        listener(explained(cut_files()))

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(tell))
    ctypes.CDLL(None).signal(int(number), _kept[0])


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

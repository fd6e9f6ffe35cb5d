"""What an input may not make a parser do; the limits of the process in which it is tried."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 2.0  # of the processor's time for one input
SPARE = 64 << 20  # bytes of memory beside twice the file's size
_RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")
_RUNS += ("pickle.find_class", "socket.connect", "socket.bind", "ctypes.dlopen", "os.startfile")
_WRITES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate")
_WRITES += ("os.chmod", "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile")
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Hang(BaseException):
    """An input took too long."""


class Guard:
    """Watches this process while `watching`; what was done against the rules is in `seen`.

    folder: the one place where files may be written. imports: modules that may be loaded late.
    """

    def __init__(self, folder: Path, imports: tuple[str, ...] = ()) -> None:
        self._folder, self._imports = str(folder), ("encodings", *imports)
        self._on, self._strictly = False, True
        self.seen: list[str] = []
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGVTALRM, self._too_long)

    def _too_long(self, *_: object) -> None:
        raise Hang(f"more than {SECONDS} s of processor time")

    def _audit(self, event: str, details: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event == "open":
            path, mode, flags = details
            writes = flags & _WRITE_FLAGS if mode is None else set(mode or "") & set("wax+")
            if writes and not self._inside(path):
                self.seen.append(f"opened {path!r} to write")
        elif self._strictly and event == "import" and not details[0].startswith(self._imports):
            self.seen.append(f"imported {details[0]}")
        elif (self._strictly and event in _RUNS) or (
            event in _WRITES and not self._inside(details[0])
        ):
            self.seen.append(f"{event} {details!r:.100}")

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int):  # a file that is open already
            return True
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
        own = name == os.devnull or name.startswith("/proc/self/")
        return own or os.path.abspath(name).startswith(self._folder)  # noqa: PTH100

    @contextmanager
    def watching(self, seconds: float = SECONDS, strictly: bool = True) -> Iterator[None]:
        """The time of one input: raises Hang after `seconds` of the processor's time.

        strictly: sees processes, sockets and imports too, not files alone.
        """
        self._strictly = strictly
        self.seen.clear()
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        self._on = True
        try:
            yield
        finally:
            self._on = False
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def limit_memory(spare: int) -> None:
    """From here on the process gets `spare` bytes more: MemoryError tells who wants more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def peak_memory() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

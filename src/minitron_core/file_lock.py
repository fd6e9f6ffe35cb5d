"""Locks on files, so that only one process writes each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]

from minitron_core.errors import MinitronError, from_os_error


def open_locked(path: Path, *, create: bool) -> IO[bytes]:
    """Open a file to read and write it, unbuffered, locked until it is closed.

    create: make it if it does not exist. The holder renames or removes it before closing it.
    Raises BlockingIOError where another process holds it, and OSError as opening does.
    """
    while True:
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags | (os.O_CREAT if create else 0), 0o666)
        file = os.fdopen(handle, "r+b", buffering=0)
        if fcntl is None:
            return file
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:
            pass  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return file
        # between our opening and locking it, its holder renamed or removed it
        file.close()


@contextmanager
def exclusive(path: Path, command: str = "quantize") -> Iterator[None]:
    """Hold a lock file during the block; MinitronError where another process holds it already."""
    try:
        lock = open_locked(path, create=True)
    except BlockingIOError as error:
        raise MinitronError(
            f"another minitron {command} is working on {path.parent}", "wait until it is done"
        ) from error
    except OSError as error:
        raise from_os_error(error, path, "write") from error
    with lock:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

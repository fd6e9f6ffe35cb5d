"""Files under way, each written by one process only."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO


def open_alone(path: Path, *, create: bool) -> IO[bytes]:
    """Open a file to read and write it, unbuffered, locked until it is closed.

    With `create` it is made where there is none. Whoever holds it renames or removes it before
    closing it. Raises BlockingIOError where another process holds it, and OSError as opening does.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
        file = os.fdopen(handle, "r+b", buffering=0)
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
        # its holder has given it its name, or removed it, between our opening and locking it
        file.close()

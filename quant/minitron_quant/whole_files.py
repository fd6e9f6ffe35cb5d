"""Small files that appear whole or not at all."""

import errno
import os
from pathlib import Path

from minitron_engine.errors import Denied, MinitronError, OutOfResources


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file durably: beside the target first, then under its name.

    Raises OutOfResources for a full disk, Denied where writing is not permitted.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> MinitronError:
    """The error for a file that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfResources(f"the disk is full: {path} was not written", "free some space")
    return Denied(f"{path} cannot be written: {error.strerror}", "choose another folder")

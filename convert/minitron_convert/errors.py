"""What can go wrong while converting, each kind with the exit code of the command line."""

from __future__ import annotations

import errno
from pathlib import Path


class ConvertError(Exception):
    """A failure told in one sentence; `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class AlreadyExists(ConvertError):
    """The output is there already."""


class NotFound(ConvertError):
    """The input, or a file that it needs, is not there."""

    exit_code = 3


class Unsupported(ConvertError):
    """The input is sound but of a kind that is not handled."""

    exit_code = 4


class NoSpace(ConvertError):
    """The disk has too little room for the output, or the memory for the work."""

    exit_code = 6


class Denied(ConvertError):
    """The system or the network refuses access."""

    exit_code = 7


class Damaged(ConvertError):
    """The input contradicts itself or its format."""

    exit_code = 8


def from_os_error(error: OSError, path: Path, action: str) -> ConvertError:
    """The error that tells `error`, met while trying to `action` (read, write) `path`."""
    if isinstance(error, BlockingIOError):
        return ConvertError(
            f"Another minitron is writing {path}.", "Wait until it is done, or choose another name."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            f"The disk is full: cannot {action} {path}.",
            "Free some space or choose another folder.",
        )
    if error.errno == errno.ENOMEM:
        return NoSpace(f"There is not enough memory to {action} {path}.", "Close other programs.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(
            f"Cannot {action} {path}: {error.strerror}.", "Check the permissions of the folder."
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"Cannot {action} {path}: {error.strerror}.", "Check the path.")
    if error.errno == errno.EISDIR:
        return NotFound(f"{path} is a folder, not a file.", "Name a file in it.")
    hint = "Allow more of them: ulimit -n 4096" if error.errno == errno.EMFILE else ""
    return ConvertError(f"Cannot {action} {path}: {error.strerror or error}.", hint)

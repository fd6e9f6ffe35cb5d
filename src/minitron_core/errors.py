"""The errors of all packages: one exception for each exit code of the command line."""

import errno
from pathlib import Path


class MinitronError(Exception):
    """A failure in one sentence, with what to do next as a hint; both lower case, no full stop."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Usage(MinitronError):
    """A request that contradicts itself or is incomplete."""

    exit_code = 2


class AlreadyExists(MinitronError):
    """The output exists, and replacing it was not allowed."""


class NotFound(MinitronError):
    """An input does not exist."""

    exit_code = 3


class Unsupported(MinitronError):
    """A model or a level that Minitron cannot handle."""

    exit_code = 4


class ImatrixNeeded(MinitronError):
    """A level that needs an importance matrix."""

    exit_code = 5


class OutOfResources(MinitronError):
    """Not enough disk or memory."""

    exit_code = 6


class Denied(MinitronError):
    """The network or a permission does not allow it."""

    exit_code = 7


class Damaged(MinitronError):
    """An input that is damaged."""

    exit_code = 8


def from_os_error(error: OSError, path: Path, action: str) -> MinitronError:
    """The error for an OSError of an attempt to `action` (read, write) `path`."""
    if isinstance(error, BlockingIOError):
        return MinitronError(
            f"another minitron is writing {path}", "wait until it is done, or choose another name"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfResources(
            f"the disk is full: cannot {action} {path}", "free some space or choose another folder"
        )
    if error.errno == errno.ENOMEM:
        return OutOfResources(f"not enough memory to {action} {path}", "close other programs")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Denied(
            f"cannot {action} {path}: {error.strerror}",
            "check the permissions, or choose another folder",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"cannot {action} {path}: {error.strerror}", "check the path")
    if error.errno == errno.EISDIR:
        return NotFound(f"{path} is a folder, not a file", "name a file in it")
    hint = "allow more open files: ulimit -n 4096" if error.errno == errno.EMFILE else ""
    return MinitronError(f"cannot {action} {path}: {error.strerror or error}", hint)

"""From an exception to one clear line and an exit code of the contract."""

import errno
from typing import NamedTuple

from minitron_cli.output import one_line
from minitron_core.cpu_limits import free_address_space
from minitron_engine.process.aborts import is_memory, no_memory


class Failure(NamedTuple):
    """What the user reads, and what the shell gets."""

    message: str
    hint: str
    exit_code: int


def explain(error: BaseException) -> Failure | None:
    """The failure that explains an error; None for a bug in Minitron.

    The packages' own errors carry their exit code and hint; the rest are the system's.
    """
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return Failure(one_line(str(error)), one_line(str(getattr(error, "hint", ""))), code)
    if lacks_memory(error):
        return explain(no_memory())
    if isinstance(error, UnicodeError):
        return Failure(f"a name or a text is not Unicode: {one_line(str(error))}", "", 8)
    if isinstance(error, RecursionError):
        return Failure("a file is nested too deeply to be read", "", 8)
    if isinstance(error, OSError):
        return _explain_system(error)
    return None


def lacks_memory(error: BaseException | None) -> bool:
    """Whether memory ran out, also where a library cannot be loaded or a thread not started."""
    while error is not None:
        says_so = isinstance(error, (ImportError, RuntimeError)) and is_memory(str(error))
        # extensions that get no memory may return an error without saying which
        silent = isinstance(error, SystemError) and free_address_space() is not None
        if says_so or silent or isinstance(error, MemoryError):
            return True
        if getattr(error, "errno", 0) == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain_system(error: OSError) -> Failure:
    what = error.strerror or str(error)
    where = f"{error.filename}: " if error.filename else ""
    codes = {
        errno.ENOENT: 3,
        errno.ENOTDIR: 3,
        errno.ENOSPC: 6,
        errno.EDQUOT: 6,
        errno.EACCES: 7,
        errno.EPERM: 7,
        errno.EROFS: 7,
    }
    return Failure(one_line(f"{where}{what}"), "", codes.get(error.errno or 0, 1))

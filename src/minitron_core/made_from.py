"""What an output was made from, in a hidden file beside it: the same inputs need no second run.

Files are known by name, size, inode and the times of their last changes, which is read in no
time; a program cannot set the time of a change of the inode. A copy counts as another file.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from minitron_core.atomic_files import read_checksummed, write_checksummed
from minitron_core.hashing import fingerprint


def inputs_key(files: Sequence[Path], *settings: object) -> str:
    """One hash over the inputs of an output: files, and everything else that decides its bytes.

    Raises FileNotFoundError for a file that does not exist.
    """
    return fingerprint(*map(_identity, files), "settings", *map(str, settings))


def record_inputs(outputs: Sequence[Path], key: str) -> None:
    """Write down that complete outputs were made from the inputs of this key."""
    for path in outputs:
        write_checksummed(_record(path), {"inputs": key, "output": _identity(path)})


def is_made_from(outputs: Sequence[Path], key: str) -> bool:
    """Whether all outputs are as they were made, and from the inputs of this key."""
    return bool(outputs) and all(_matches(path, key) for path in outputs)


def forget_inputs(output: Path) -> None:
    """Remove what is written down about an output."""
    _record(output).unlink(missing_ok=True)


def _matches(path: Path, key: str) -> bool:
    with suppress(OSError, ValueError):
        return read_checksummed(_record(path)) == {"inputs": key, "output": _identity(path)}
    return False


def _record(output: Path) -> Path:
    return output.with_name(f".{output.name}.made-from")


def _identity(path: Path) -> str:
    found = path.stat()
    changed = f"{found.st_mtime_ns} {found.st_ctime_ns}"
    return f"{path.name} {found.st_size} {found.st_dev} {found.st_ino} {changed}"

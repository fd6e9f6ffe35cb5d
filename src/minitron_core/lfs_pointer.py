"""Git LFS's pointers: what a clone leaves of large files where Git LFS is not installed."""

from pathlib import Path
from typing import Any

from minitron_core.errors import NotFound

_BEGINNING = b"version https://git-lfs.github.com/spec/"


def refuse_lfs_pointer(path: Path, data: Any) -> None:
    """Raise NotFound where a file's bytes, or its first ones, are such a pointer."""
    if bytes(data[: len(_BEGINNING)]) == _BEGINNING:
        raise NotFound(
            f"{path} is a Git LFS pointer: the file that it stands for was not downloaded",
            f"run git lfs pull in {path.absolute().parent}",
        )

"""Versions of installed packages."""

import sys
from pathlib import Path

_END = ".dist-info"


def installed_version(package: str) -> str:
    """The version of a package, by the name of the folder with its metadata.

    package: as that folder spells it. importlib.metadata takes longer to load than a small model to
    quantize; it answers where there is no such folder, and raises PackageNotFoundError.
    """
    for place in filter(None, sys.path):
        for found in Path(place).glob(f"{package}-*{_END}"):
            return found.name.removesuffix(_END).partition("-")[2]
    from importlib.metadata import version

    return version(package)

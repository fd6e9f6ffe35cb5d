"""The compiled kernels, for tests that need them whatever is installed."""

import ctypes
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from helpers.support import ROOT
from minitron_core.kernels import LIBRARY, Kernels, load

SOURCES = ROOT / "quant" / "kernels"


class Built:
    """A library of the sources as they are, and what it says of this processor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loaded = load(path)
        if self.loaded.library is None:
            pytest.skip(self.loaded.reason)
        self.library: ctypes.CDLL | None = self.loaded.library
        self.level = self.loaded.level

    @contextmanager
    def copied(self) -> Iterator[Kernels]:
        """The same library once more in this process, with tables of its own."""
        with tempfile.TemporaryDirectory() as folder:
            yield load(Path(shutil.copy(self.path, folder)))


def build_hook() -> ModuleType:
    """hatch_build.py of the repository."""
    spec = spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def built_library() -> Built:
    """The one beside the package if it is newer than its sources, else one built for the tests."""
    newest = max(path.stat().st_mtime for path in [*SOURCES.iterdir(), ROOT / "hatch_build.py"])
    if LIBRARY.exists() and LIBRARY.stat().st_mtime >= newest:
        return Built(LIBRARY)
    target = Path(tempfile.mkdtemp(prefix="minitron-kernels-")) / LIBRARY.name
    if not build_hook().build(ROOT, target):
        pytest.skip("there is no compiler for the kernels here")
    return Built(target)

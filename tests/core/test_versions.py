"""Versions of packages, without importlib.metadata."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from minitron_core.versions import installed_version


def test_installed_version_is_that_of_the_metadata() -> None:
    for package in ("llama_cpp_python", "numpy", "hypothesis"):
        assert installed_version(package) == version(package)
    with pytest.raises(PackageNotFoundError):
        installed_version("no_such_package")

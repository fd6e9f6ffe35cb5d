"""What is installed: pinned with hashes, and every license named."""

import importlib.util
import re
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# extras that the locks leave out
HUGE = {"accelerate", "lm_eval", "torch", "transformers"}
LOCKS = ("requirements.lock", "requirements-build.lock")


@pytest.fixture(scope="module")
def third_party() -> Any:
    """The script that writes THIRD_PARTY.md, as a module."""
    spec = importlib.util.spec_from_file_location("third_party", ROOT / ".ci" / "third_party.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries(lock: str) -> list[str]:
    """The requirements of a lock file, each with its lines of hashes."""
    return re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip())


@pytest.mark.parametrize("lock", LOCKS)
def test_everything_is_pinned_with_hashes(lock: str) -> None:
    for entry in entries(lock):
        requirement, *hashes = entry.split(" \\\n")
        assert re.match(r"[a-z0-9-]+==[0-9][^ ,]*( ; .*)?$", requirement), requirement
        assert hashes
        assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}", line) for line in hashes), entry


def test_the_locks_agree_with_the_project_and_with_each_other(third_party: Any) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = project["build-system"]["requires"]
    wanted += extras.pop("dev") + project["dependency-groups"]["build"]
    ranges = [*project["project"]["dependencies"], *chain.from_iterable(extras.values())]
    pinned = third_party.locked()
    for requirement in map(Requirement, wanted):
        version = pinned[canonicalize_name(requirement.name)]
        assert str(requirement.specifier) == f"=={version}", requirement
    # a library's users need room beside other packages; llama.cpp is one version
    for requirement in map(Requirement, ranges):
        # the locks are for running the tests: they lack what needs gigabytes
        version = pinned.get(canonicalize_name(requirement.name))
        assert version in requirement.specifier if version else requirement.name in HUGE
        exact = str(requirement.specifier).startswith("==")
        assert exact is (requirement.name == "llama-cpp-python"), requirement
    both = [entry.split(" ")[0] for lock in LOCKS for entry in entries(lock)]
    assert len({one.split("==")[0] for one in both}) == len(set(both))


def test_every_license_is_named(third_party: Any) -> None:
    lines = third_party.TABLE.read_text().partition(third_party.HEAD)[2].splitlines()
    rows = [third_party.Package(*line.strip("| ").split(" | ")) for line in lines]
    assert {row.name: row.version for row in rows} == third_party.locked()
    assert {row.needed for row in rows} >= {"always", "for serve", "to compile", "to test"}
    here = {canonicalize_name(one.metadata["Name"]) for one in metadata.distributions()}
    installed = [row for row in rows if row.name in here]
    assert len(installed) > 70
    for row in installed:
        assert row.version == metadata.version(row.name), "make install"
        assert row.license == third_party.declared_license(row.name) != ""

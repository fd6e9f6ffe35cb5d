"""What the converter's tests share."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"convert_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def synthetic() -> ModuleType:
    """The maker of small checkpoints."""
    return _load("synthetic")


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The models' networks in float64."""
    return _load("numpy_model")


@pytest.fixture(scope="session")
def hub_server() -> ModuleType:
    """A small server that speaks the Hub's API."""
    return _load("hub_server")


@pytest.fixture(scope="session")
def examples() -> Path:
    """The folder with the bundled models."""
    return ROOT / "examples"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Material beside the repository: configs and tokenizers of published models."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs the published configs and tokenizers, which are not in the repository")
    return path


@pytest.fixture(scope="session")
def recorded() -> Callable[[str], dict[str, Any]]:
    """What llama.cpp's converter made of a model, by the model's name."""

    def load(name: str) -> dict[str, Any]:
        value = json.loads((ROOT / "tests" / "data" / "convert" / f"{name}.json").read_text())
        assert isinstance(value, dict)
        return value

    return load


@pytest.fixture
def checkpoint(synthetic: ModuleType, tmp_path: Path, examples: Path) -> Callable[[str], Path]:
    """A maker of the checkpoint of a variant, in a folder of its own."""

    def make(name: str) -> Path:
        folder = synthetic.make_checkpoint(name, tmp_path / "checkpoints", examples)
        assert isinstance(folder, Path)
        return folder

    return make

"""What the converter's tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.synthetic_checkpoints import make_checkpoint

ROOT = Path(__file__).parents[2]


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
def checkpoint(tmp_path: Path, examples: Path) -> Callable[[str], Path]:
    """A maker of the checkpoint of a variant, in a folder of its own."""

    def make(name: str) -> Path:
        return make_checkpoint(name, tmp_path / "checkpoints", examples)

    return make

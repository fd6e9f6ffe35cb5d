"""What the commands of this folder's tests read, made once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from hardening import workshop
from hardening.workshop import COMMANDS, Material, Whole
from helpers.support import EXAMPLES, quantize
from minitron_core.gguf import TYPE_ID
from minitron_quant.chunking import ChunkSettings
from minitron_quant.mixed_precision import costs
from minitron_quant.mixed_precision.measure import SensitivitySettings, measure_sensitivity


@pytest.fixture(scope="session")
def material(nano_nemotron: Path, tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A model, a level of it, and short texts."""
    folder = tmp_path_factory.mktemp("material")
    model = folder / "nano-F16.gguf"
    model.symlink_to(nano_nemotron)
    level = quantize(nano_nemotron, folder, "Q4_0")["Q4_0"].path
    found = Material(folder, model, level)
    for path in (found.calibration, found.held_out):
        path.write_text((EXAMPLES / path.name).read_text()[:9000])
    return found


@pytest.fixture(scope="session")
def sensitivity(material: Material) -> None:
    """What mixes for a size need beside the material, of few types."""
    types = frozenset(TYPE_ID[name] for name in ("q4_0", "q5_0", "q8_0"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs, "ENCODABLE", types)
        patch.setattr(costs, "_ROWS", 32)
        chunks = ChunkSettings(n_ctx=64, n_batch=64)
        measure_sensitivity(
            SensitivitySettings(
                material.model, material.calibration, material.sensitivity, tokens=64, chunks=chunks
            )
        )


@pytest.fixture(scope="session")
def whole(
    material: Material, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Whole]:
    """Uninterrupted runs by command, made once."""
    folder = tmp_path_factory.mktemp("whole")

    def run(name: str) -> Whole:
        if name == "size":
            request.getfixturevalue("sensitivity")
        return workshop.whole_run(COMMANDS[name], material, folder / name)

    return cache(run)


@pytest.fixture(scope="session")
def lines(
    material: Material, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[list[str], list[int]]]:
    """The lines of our code that a command executes, by command: see `traced`."""
    folder = tmp_path_factory.mktemp("lines")
    return cache(lambda name: workshop.executed_lines(COMMANDS[name], material, folder / name))

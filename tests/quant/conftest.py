"""A sensitivity of nano-nemotron, measured once on little: few types, rows and tokens."""

from pathlib import Path

import pytest

from helpers.support import EXAMPLES
from minitron_core.gguf import TYPE_ID
from minitron_quant.chunking import ChunkSettings
from minitron_quant.mixed_precision import costs as costs_module
from minitron_quant.mixed_precision.measure import SensitivitySettings, measure_sensitivity
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity

TYPES = frozenset(TYPE_ID[name] for name in ("q2_K", "q3_K", "q4_0", "q6_K", "q8_0"))


@pytest.fixture(scope="session")
def settings(nano_nemotron: Path, tmp_path_factory: pytest.TempPathFactory) -> SensitivitySettings:
    output = tmp_path_factory.mktemp("sensitivity") / "nemotron.sensitivity.json"
    text = output.with_name("text.txt")
    text.write_text((EXAMPLES / "calibration.txt").read_text()[:6000])
    chunks = ChunkSettings(n_ctx=64, n_batch=64)
    return SensitivitySettings(nano_nemotron, text, output, tokens=128, chunks=chunks)


def _use_few_types(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(costs_module, "ENCODABLE", TYPES)
    patch.setattr(costs_module, "_ROWS", 64)


@pytest.fixture
def few_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and quick types, and few rows: what is tested holds for all."""
    _use_few_types(monkeypatch)


@pytest.fixture(scope="session")
def measured(settings: SensitivitySettings) -> Sensitivity:
    """The sensitivity that the settings' file holds."""
    with pytest.MonkeyPatch.context() as patch:
        _use_few_types(patch)
        return measure_sensitivity(settings)

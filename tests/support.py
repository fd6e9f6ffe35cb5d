"""Where the tests' data are."""

import json
from pathlib import Path
from typing import Any

from minitron_quant.levels import parse_levels
from minitron_quant.quantize.batch import LevelResult, run
from minitron_quant.quantize.job import QuantizeSettings, prepare

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RECORDED = ROOT / "tests" / "data" / "llama_cpp"


def recorded(name: str) -> Any:
    """A recording of llama.cpp's own programs; see tests/data/llama_cpp/README.md."""
    return json.loads((RECORDED / name).read_text())


def quantize(source: Path, folder: Path, *levels: str, **more: Any) -> dict[str, LevelResult]:
    """Levels of a model by name; `more` are further settings of the job."""
    settings = QuantizeSettings(source, tuple(parse_levels(levels)), folder, **more)
    return {result.level: result for result in run(prepare(settings))}

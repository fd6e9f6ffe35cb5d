"""Where the tests' data are."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
RECORDED = ROOT / "tests" / "data" / "llama_cpp"


def recorded(name: str) -> Any:
    """A recording of llama.cpp's own programs; see tests/data/llama_cpp/README.md."""
    return json.loads((RECORDED / name).read_text())

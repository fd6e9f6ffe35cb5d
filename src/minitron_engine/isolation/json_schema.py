"""JSON schemas as grammars, converted in a separate process with limits."""

import json
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from minitron_core.errors import Usage

_WORKER = Path(__file__).with_name("json_schema_worker.py")
_SECONDS = 10.0


def conversion_module() -> str:
    """The path of llama-cpp-python's converter, found without loading the package."""
    spec = find_spec("llama_cpp")
    assert spec is not None and spec.submodule_search_locations is not None
    return str(Path(spec.submodule_search_locations[0]) / "llama_grammar.py")


@lru_cache(64)
def schema_grammar(schema: str) -> str:
    """The grammar of a JSON schema, by llama.cpp's own converter. Raises Usage."""
    command = [sys.executable, "-I", str(_WORKER), conversion_module()]
    data = schema.encode("utf-8", "replace")
    try:
        ran = subprocess.run(
            command, input=data, capture_output=True, timeout=_SECONDS, check=False
        )
        answer = json.loads(ran.stdout) if ran.returncode == 0 else {"error": "it is too large"}
    except subprocess.TimeoutExpired:
        answer = {"error": f"its conversion takes longer than {_SECONDS:g} s"}
    if "error" in answer:
        raise Usage(f"the JSON schema cannot be used: {answer['error']}")
    return str(answer["grammar"])

"""JSON schemas become grammars, in a process of their own that cannot hang this one."""

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
    """The path of llama-cpp-python's conversion; the package is not loaded for it."""
    spec = find_spec("llama_cpp")
    assert spec is not None and spec.submodule_search_locations is not None
    return str(Path(spec.submodule_search_locations[0]) / "llama_grammar.py")


@lru_cache(64)
def schema_grammar(schema: str) -> str:
    """The grammar of a JSON schema, by llama.cpp's own conversion. Raises Usage."""
    command = [sys.executable, "-I", str(_WORKER), conversion_module()]
    data = schema.encode("utf-8", "replace")
    try:
        ran = subprocess.run(
            command, input=data, capture_output=True, timeout=_SECONDS, check=False
        )
        answer = json.loads(ran.stdout) if ran.returncode == 0 else {"error": "it has no end"}
    except subprocess.TimeoutExpired:
        answer = {"error": "its grammar has no end"}
    if "error" in answer:
        raise Usage(f"the JSON schema cannot be used: {answer['error']}")
    return str(answer["grammar"])

"""The process in which a JSON schema becomes a grammar, by llama-cpp-python's own converter.

The converter loops on some patterns and expands repetitions; this process limits its memory, and
json_schema.py ends it after a timeout. Run as a file with the path of the converter's module: it
loads nothing else of either package.
"""

import json
import resource
import sys
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

_MEMORY = 1 << 29


def convert(module: str, schema: str) -> dict[str, str]:
    """{"grammar": …}, or {"error": …} with the reason."""
    spec = spec_from_file_location("llama_grammar", module)
    assert spec is not None and spec.loader is not None
    conversion: Any = module_from_spec(spec)
    spec.loader.exec_module(conversion)
    try:
        return {"grammar": str(conversion.json_schema_to_gbnf(schema))}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:
        return {"error": f"{error}" or type(error).__name__}


def main() -> None:
    """Answer the schema on stdin."""
    with suppress(ValueError, OSError):  # not every system can
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    schema = sys.stdin.buffer.read().decode("utf-8", "replace")
    json.dump(convert(sys.argv[1], schema), sys.stdout)


if __name__ == "__main__":
    main()

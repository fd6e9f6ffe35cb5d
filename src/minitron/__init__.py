"""The Python API of Minitron: whatever a command does, for programs.

`__init__.pyi` names what there is and where it lives. A name is loaded when it is first used, so
that `import minitron` loads nothing (https://scientific-python.org/specs/spec-0001/).
docs/python.md has examples.
"""

from functools import cache
from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    if name not in _homes():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_homes()[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(_homes())


@cache
def _homes() -> dict[str, str]:
    """The module of each name, read from the stub."""
    import ast
    from pathlib import Path

    imports = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    return {
        alias.name: str(node.module)
        for node in imports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

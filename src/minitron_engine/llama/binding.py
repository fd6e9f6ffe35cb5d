"""llama-cpp-python's ctypes declarations, without the rest of the package.

`import llama_cpp` also loads its high-level classes, chat formats, jinja2, a disk cache and sqlite,
which takes longer than many a command and is never used here. So the package is put into
sys.modules before its __init__ has run, and only the submodules asked for are loaded. It is still
the package: whoever asks it for anything else gets it whole.
"""

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any


def _postpone_package() -> None:
    """Put `llama_cpp` into sys.modules; its __init__ runs when a name is missed (PEP 562)."""
    spec = find_spec("llama_cpp")
    if "llama_cpp" in sys.modules or spec is None or spec.loader is None:
        return  # it is loaded already, or its absence is told by the import below
    package, loader = module_from_spec(spec), spec.loader

    def complete(name: str) -> Any:
        del package.__getattr__
        loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = complete  # type: ignore[method-assign]
    sys.modules["llama_cpp"] = package


_postpone_package()

# only in this form does an import not ask the package for the name
import llama_cpp.llama_cpp as api  # noqa: E402

__all__ = ["api"]

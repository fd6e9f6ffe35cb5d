"""llama-cpp-python's ctypes declarations, without the rest of the package.

`import llama_cpp` also loads its high-level classes, chat formats, jinja2, a disk cache and sqlite,
which takes longer than many commands and is not used here. So this puts the package into
sys.modules before its __init__ has run and loads one submodule. Any other name of the package
loads the rest.
"""

import sys
from importlib.util import find_spec, module_from_spec
from typing import Any


def _postpone_package() -> None:
    """Put `llama_cpp` into sys.modules; its __init__ runs at the first missing name (PEP 562)."""
    spec = find_spec("llama_cpp")
    if "llama_cpp" in sys.modules or spec is None or spec.loader is None:
        return  # it is loaded already, or the import below says that it is missing
    package, loader = module_from_spec(spec), spec.loader

    def complete(name: str) -> Any:
        del package.__getattr__
        loader.exec_module(package)
        return getattr(package, name)

    package.__getattr__ = complete  # type: ignore[method-assign]
    sys.modules["llama_cpp"] = package


_postpone_package()

# only this form of import does not look the name up in the package
import llama_cpp.llama_cpp as api  # noqa: E402

__all__ = ["api"]

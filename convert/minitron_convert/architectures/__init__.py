"""The model families, by the class name that a checkpoint's config gives in `architectures`.

A new family is one file in this folder, with a dict ARCHITECTURES of class names.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from minitron_convert.architectures.base import Family, ModelTensor
from minitron_convert.checkpoint.folder import Checkpoint
from minitron_core.errors import Damaged, Unsupported

FAMILIES: dict[str, Callable[[Checkpoint], Family]] = {}
for _module in iter_modules(__path__, f"{__name__}."):
    FAMILIES.update(getattr(import_module(_module.name), "ARCHITECTURES", {}))

__all__ = ["FAMILIES", "Family", "ModelTensor", "find_family"]


def find_family(checkpoint: Checkpoint) -> Family:
    """The family of an opened checkpoint. Unsupported if its class is not registered."""
    where = checkpoint.folder / "config.json"
    names = checkpoint.config.get("architectures")
    if not isinstance(names, list) or not names:
        raise Damaged(f"{where} does not name its architecture (key: architectures).")
    family = FAMILIES.get(str(names[0]))
    if family is None:
        raise Unsupported(
            f"{where} is of the architecture {names[0]}, which is not supported.",
            f"Supported are {', '.join(FAMILIES)}.",
        )
    if checkpoint.config.get("quantization_config"):
        raise Unsupported(
            f"{where} belongs to a quantized checkpoint.", "Give the one that was trained."
        )
    return family(checkpoint)

"""The model families, by the class name that a checkpoint's config gives in `architectures`.

A new family is one record in this folder: a module with a dict ARCHITECTURES of class names.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from minitron_convert.architectures.model_tensor import ModelTensor
from minitron_convert.architectures.record import Architecture
from minitron_convert.architectures.source_model import SourceModel
from minitron_convert.checkpoint.folder import Checkpoint
from minitron_convert.checkpoint.quantization import check_quantization
from minitron_core.errors import Damaged, Unsupported

ARCHITECTURES: dict[str, Architecture] = {}
for _module in iter_modules(__path__, f"{__name__}."):
    ARCHITECTURES.update(getattr(import_module(_module.name), "ARCHITECTURES", {}))

_REFUSED = {
    "NemotronFlashForCausalLM": "llama.cpp cannot run Nemotron-Flash",
}

__all__ = ["ARCHITECTURES", "Architecture", "ModelTensor", "SourceModel", "read_model"]


def read_model(checkpoint: Checkpoint) -> SourceModel:
    """An opened checkpoint as its architecture. Unsupported if its class has no record."""
    where = checkpoint.folder / "config.json"
    names = checkpoint.config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise Damaged(f"{where} does not name its architecture (key: architectures)")
    architecture = ARCHITECTURES.get(names[0])
    reason = _REFUSED.get(names[0])
    if reason is not None:
        raise Unsupported(f"{where} is of {names[0]}: {reason}")
    if architecture is None:
        raise Unsupported(
            f"{where} is of the architecture {names[0]}, which is not supported",
            f"supported are {', '.join(ARCHITECTURES)}",
        )
    check_quantization(checkpoint.folder, checkpoint.config, architecture.quantizations)
    return SourceModel(architecture, checkpoint).variant()

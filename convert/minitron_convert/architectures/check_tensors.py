"""The tensors of a checkpoint beside those that its config asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minitron_convert.architectures.model_tensor import ModelTensor
from minitron_convert.architectures.shapes import block_of, kind_of
from minitron_convert.checkpoint.tensor_ref import TensorRef
from minitron_core.errors import Damaged

NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, in a tensor's name
_SHOWN = 6  # names in a message: a model of the wrong kind has hundreds
_USUAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


@dataclass(frozen=True)
class Placed:
    """A tensor of the output and the one of the checkpoint that it comes from."""

    tensor: ModelTensor
    source: TensorRef


def check_tensors(
    folder: Path, placed: list[Placed], expected: Mapping[str, tuple[tuple[int, ...], bool]]
) -> None:
    """Damaged where tensors are missing, too many, there twice, or of another shape.

    expected: by name in the output, the shape and whether the model needs it.
    """
    found = {entry.tensor.name: entry for entry in placed}
    missing = [name for name, (_, must) in expected.items() if must and name not in found]
    if missing:
        names = [_source_name(name, found) for name in missing]
        raise Damaged(
            f"{folder} lacks {len(missing)} tensors: {listed(names)}",
            "download the missing files, or check num_hidden_layers in config.json",
        )
    unknown = [entry.source.name for name, entry in found.items() if name not in expected]
    if unknown:
        raise Damaged(
            f"{folder} holds {len(unknown)} tensors that its config.json has no place for: "
            f"{listed(unknown)}",
            "check num_hidden_layers and architectures in config.json",
        )
    if len(found) != len(placed):
        raise Damaged(f"{folder} holds a tensor of the model twice, under two names")
    for name, entry in found.items():
        shape, wanted = entry.tensor.shape, expected[name][0]
        if shape != wanted:
            raise Damaged(
                f"{entry.source.path}: {entry.source.name} gives {name} the shape "
                f"{list(shape)}; config.json wants {list(wanted)}",
                "the config belongs to another model, or the file is damaged",
            )


def _source_name(name: str, found: Mapping[str, Placed]) -> str:
    """What a missing tensor would be called in the checkpoint, by one of its kind that is there."""
    kind, block = kind_of(name), block_of(name)
    for other, entry in found.items():
        if block is not None and kind_of(other) == kind:
            return NUMBER.sub(str(block), entry.source.name, count=1)
    return _USUAL_NAMES.get(name, name)


def listed(names: list[str]) -> str:
    """Names for a message: the first, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

"""Names of published GGUF files: which level is in one, and which files a level means.

A model here is the path of its file in a repository, without a shard's number and `.gguf`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from minitron_core.gguf import parse_shard_name

# what publishers put before a level for files made otherwise: Unsloth's own mixes, weighted ones
_VARIANT = r"(?:UD|i\d+)-"
_SIZES = "XXS|XS|S|M|L|XL|NL|XXL"
_LEVEL = re.compile(
    rf"(?<![a-z0-9])(?P<variant>{_VARIANT})?"
    rf"(?P<level>I?Q\d_[A-Z0-9]+(?:_(?:{_SIZES}|\d+))*|TQ\d_\d|MXFP4(?:_MOE)?|NVFP4|B?F16|FP?32|FP16"
    r"|\d+(?:\.\d+)?bpw)(?!_?[a-z0-9])",
    re.IGNORECASE,
)
# GGUF files beside models that are none
_OTHERS = re.compile(r"mmproj|imatrix(?!.*\d_)", re.IGNORECASE)  # not Model-imatrix-Q4_K_M
_LAST_PART = re.compile(r"(?:^|[-./])([^-./]+)$")
_SAME = {"fp16": "f16", "fp32": "f32"}


def models_in(files: Iterable[str]) -> dict[str, list[str]]:
    """The files of each model of a repository, its shards in order, by the model."""
    models: dict[str, list[str]] = {}
    for name in sorted(files):
        if name.endswith(".gguf") and not _OTHERS.search(name.rpartition("/")[2]):
            shard = parse_shard_name(name)
            models.setdefault(shard.stem if shard else name[:-5], []).append(name)
    return models


def spellings(model: str) -> tuple[str, ...]:
    """What `models_called` may know a model by: its level, with and without a variant, its name."""
    levels = [] if (found := _found(model)) is None else [found[1], _comparable(found[1]).upper()]
    return (level_in(model), *levels, model.rpartition("/")[2], model)


def level_in(model: str) -> str:
    """The level in a model's name, or in its folder's; without one the name's last part."""
    found = _found(model)
    if found is not None:
        return found[0]
    last = _LAST_PART.search(model)
    return last[1] if last else model


def models_called(wanted: str, models: Iterable[str]) -> list[str]:
    """The models that a level, a name or the end of one means; several where it does not decide.

    Case does not matter. A variant such as UD-Q4_K_XL is found by its full name, and by Q4_K_XL
    where no plain model has this level.
    """
    candidates, level = list(models), _comparable(wanted)
    ending = re.compile(rf"(?:.*[-./])?{re.escape(wanted)}", re.IGNORECASE)
    named = [model for model in candidates if model.casefold() == wanted.casefold()]
    exact = [model for model in candidates if _comparable(level_in(model)) == level]
    variants = [
        model for model in candidates if (found := _found(model)) and _comparable(found[1]) == level
    ]
    ended = [model for model in candidates if ending.fullmatch(model)]
    return named or exact or variants or ended


def _found(model: str) -> tuple[str, str] | None:
    """The last level of the name, else of the nearest folder: with its variant, and without."""
    for part in reversed(model.split("/")):
        matches = list(_LEVEL.finditer(part))
        if matches:
            return matches[-1][0], matches[-1]["level"]
    return None


def _comparable(level: str) -> str:
    return _SAME.get(level.casefold(), level.casefold())

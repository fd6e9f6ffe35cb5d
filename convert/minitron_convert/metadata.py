"""The general.* keys: name, licence, base models and so on, as llama.cpp's converter finds them.

The heuristics over the model card, config.json and the folder's name are gguf-py's own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import yaml  # type: ignore[import-untyped]

from minitron_convert.architectures import ModelTensor
from minitron_convert.checkpoint.json_files import read_object, read_settings
from minitron_core.errors import Damaged
from minitron_core.gguf import KeyValue, ValueType
from minitron_core.quoting import quoted

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


_FIELDS = tuple(field.name for field in fields(gguf.Metadata))


class Parameters(NamedTuple):
    """Counts of weights: all, those that every token uses, those of one expert, and experts."""

    total: int
    shared: int
    expert: int
    experts: int


def count_parameters(tensors: Sequence[ModelTensor]) -> Parameters:
    """The counts by which llama.cpp labels a model's size, as 8B or 128x2.4B."""
    stacks = [t for t in tensors if "_exps." in t.name and len(t.shape) > 2]
    total = sum(prod(tensor.shape) for tensor in tensors)
    shared = total - sum(prod(tensor.shape) for tensor in stacks)
    one = sum(prod(tensor.shape[1:]) for tensor in stacks)
    experts = sum(tensor.shape[0] for tensor in stacks) // len(stacks) if stacks else 0
    return Parameters(total, shared, one, experts)


class General(NamedTuple):
    """The general.* keys and the name of the file without its type and ending."""

    keys: list[KeyValue]
    model_name: str
    notes: list[str]


def read_general(
    folder: Path,
    architecture: str,
    parameters: Parameters,
    override: Path | None,
    name: str | None = None,
) -> General:
    """Collect the metadata of a checkpoint; its parameters are all zero for a vocabulary alone.

    `override` is a JSON file of general.* keys, `name` stands for the folder's name where that
    says nothing of the model. NotFound or Damaged if a file cannot be read.
    """
    overrides = {} if override is None else read_object(override)
    notes: list[str] = []
    named = Path(name or folder.absolute().name)
    found = _described(folder, named, parameters.total, notes)
    _take_sampling(found, read_settings(folder / "generation_config.json", notes))
    for key, value in overrides.items():
        attribute = key.removeprefix("general.").replace(".", "_")
        if attribute in _FIELDS:
            setattr(found, attribute, value)
    stated = {key.removeprefix("general.").replace(".", "_") for key in overrides}
    _drop_impossible(found, architecture, stated, notes)
    found.name = found.name or named.name or "model"
    if found.size_label is None and parameters.total:
        found.size_label = gguf.size_label(*parameters)
    return General(_keys(found, architecture), _file_name(found, parameters), notes)


def _described(folder: Path, named: Path, total: int, notes: list[str]) -> gguf.Metadata:
    """What model card, config and names say; a card of other content than usual is passed over."""
    parameters = read_object(folder / "config.json")
    card = _read_card(folder, notes)
    try:
        return gguf.Metadata.apply_metadata_heuristic(
            gguf.Metadata(), card, parameters, named, total
        )
    except (TypeError, AttributeError, ValueError):
        notes.append("the head of README.md is malformed: nothing was taken from it")
    try:
        return gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), {}, parameters, named, total)
    except (TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"the config in {folder} is malformed") from error


def _drop_impossible(
    found: gguf.Metadata, architecture: str, stated: set[str], notes: list[str]
) -> None:
    """Leave out what no key can hold. Damaged: it was given on purpose, by names in `stated`."""
    for attribute in _FIELDS:
        value = getattr(found, attribute)
        if value is None:
            continue
        alone = gguf.Metadata(name="alone")
        setattr(alone, attribute, value)
        try:
            if attribute.startswith("sampling_") and isinstance(value, bool):
                raise TypeError  # false is not a number
            _keys(alone, architecture)
        except _IMPOSSIBLE as error:
            name = attribute.replace("_", " ")
            if attribute in stated:
                raise Damaged(f"general.{attribute} cannot be {quoted(value)}") from error
            notes.append(f"the {name} of the model cannot be {quoted(value)}: it is left out")
            setattr(found, attribute, None)


def _read_card(folder: Path, notes: list[str]) -> dict[str, Any]:
    logger = logging.getLogger("metadata")
    disabled, logger.disabled = logger.disabled, True
    try:
        card: dict[str, Any] = gguf.Metadata.load_model_card(folder)
    except (yaml.YAMLError, UnicodeDecodeError):
        notes.append("the head of README.md is not valid YAML: nothing was taken from it")
        return {}
    finally:
        logger.disabled = disabled
    return {key: _as_text(value) for key, value in card.items()}


def _as_text(value: Any) -> Any:
    """A value of a model card as the text that it was: YAML reads no, 3.1 and dates otherwise."""
    if isinstance(value, list):
        return [_as_text(item) for item in value if item is not None]
    if isinstance(value, bool):
        return "true" if value else "no"
    return value if isinstance(value, str | dict | None) else str(value)


def _take_sampling(found: gguf.Metadata, generation: dict[str, Any]) -> None:
    """The settings of generation_config.json, under llama.cpp's names for them."""
    other_names = {
        "temp": ("temperature",),
        "penalty_repeat": ("penalty_repeat", "repetition_penalty"),
    }
    for attribute in _FIELDS:
        setting = attribute.removeprefix("sampling_")
        if setting != attribute:
            names = other_names.get(setting, (setting,))
            value = next((generation[name] for name in names if name in generation), None)
            setattr(found, attribute, value)


_IMPOSSIBLE = (TypeError, ValueError, AttributeError, KeyError, OverflowError)


def _keys(found: gguf.Metadata, architecture: str) -> list[KeyValue]:
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    found.set_gguf_meta_model(writer)
    return [
        KeyValue.of(key, entry.type.value, entry.value) for key, entry in writer.kv_data[0].items()
    ]


def _file_name(found: gguf.Metadata, parameters: Parameters) -> str:
    label = found.size_label if parameters.total else None
    name = gguf.naming_convention(
        found.name, found.basename, found.finetune, found.version, label, None
    )
    return re.sub(r"[\x00-\x1f/\\]", "-", name)


def quantization_version_key() -> KeyValue:
    """The key that names the generation of ggml's block formats."""
    return KeyValue.of("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION)

"""The general.* keys: name, licence, base models and so on, as llama.cpp's converter finds them.

The heuristics over the model card, config.json and the folder's name are gguf-py's own.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import yaml  # type: ignore[import-untyped]

from minitron_convert.checkpoint.json_files import read_object, read_optional
from minitron_core.errors import Damaged
from minitron_core.gguf import KeyValue, ValueType

QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION


class General(NamedTuple):
    """The general.* keys and the name of the file without its type and ending."""

    keys: list[KeyValue]
    model_name: str
    notes: list[str]


@contextmanager
def named_folder(folder: Path, name: str | None) -> Iterator[Path]:
    """The folder under another name: gguf-py's heuristics go by the name of the path."""
    if name is None:
        yield folder.absolute()
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / name
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def read_general(
    folder: Path, architecture: str, parameters: int, override: Path | None
) -> General:
    """Collect the metadata of a checkpoint of `parameters` weights (0 for a vocabulary alone).

    `override` is a JSON file of general.* keys. NotFound or Damaged if it cannot be read.
    """
    overrides = {} if override is None else read_object(override)
    notes: list[str] = []
    logger = logging.getLogger("metadata")
    disabled, logger.disabled = logger.disabled, True
    try:
        found = gguf.Metadata.load(override, folder, None, parameters)
    except yaml.YAMLError:
        notes.append("the head of README.md is not valid YAML: nothing was taken from it")
        found = _without_card(folder, overrides, parameters)
    except (TypeError, AttributeError, ValueError) as error:
        raise Damaged(f"The model card or a config in {folder} is malformed: {error}.") from error
    finally:
        logger.disabled = disabled
    _complete(found, folder, overrides, parameters)
    return General(_keys(found, architecture, folder), _file_name(found, parameters), notes)


def _without_card(folder: Path, overrides: dict[str, Any], parameters: int) -> gguf.Metadata:
    found = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), {}, gguf.Metadata.load_hf_parameters(folder), folder, parameters
    )
    for key, value in overrides.items():
        setattr(found, key.removeprefix("general.").replace(".", "_"), value)
    return found


def _complete(
    found: gguf.Metadata, folder: Path, overrides: dict[str, Any], parameters: int
) -> None:
    """What the packaged gguf-py does not do and llama.cpp's converter does."""
    generation = read_optional(folder / "generation_config.json")
    if "general.sampling.penalty_repeat" not in overrides and "penalty_repeat" not in generation:
        found.sampling_penalty_repeat = generation.get(
            "repetition_penalty", found.sampling_penalty_repeat
        )
    found.name = found.name or folder.name or "model"
    if found.size_label is None and parameters:
        found.size_label = gguf.size_label(parameters, parameters, 0, 0)


def _keys(found: gguf.Metadata, architecture: str, folder: Path) -> list[KeyValue]:
    writer = gguf.GGUFWriter(None, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    try:
        found.set_gguf_meta_model(writer)
        return [
            KeyValue.of(key, entry.type.value, entry.value)
            for key, entry in writer.kv_data[0].items()
        ]
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise Damaged(
            f"{folder}: its model card or generation_config.json holds an impossible value: "
            f"{error}."
        ) from error


def _file_name(found: gguf.Metadata, parameters: int) -> str:
    label = found.size_label if parameters else None
    name = gguf.naming_convention(
        found.name, found.basename, found.finetune, found.version, label, None
    )
    return re.sub(r"[\x00-\x1f/\\]", "-", name)


def quantization_version_key() -> KeyValue:
    """The key that names the generation of ggml's block formats."""
    return KeyValue.of("general.quantization_version", ValueType.UINT32, QUANTIZATION_VERSION)

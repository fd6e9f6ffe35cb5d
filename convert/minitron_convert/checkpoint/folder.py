"""Finding and opening a checkpoint folder: its config and its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from minitron_convert.checkpoint.fp8 import with_scales
from minitron_convert.checkpoint.json_files import read_object
from minitron_convert.checkpoint.quantization import quantization_of
from minitron_convert.checkpoint.safetensors import read_header
from minitron_convert.checkpoint.tensor_ref import TensorRef
from minitron_convert.checkpoint.torch_file import read_pickle
from minitron_core.errors import Damaged, NotFound
from minitron_core.quoting import quoted

MAX_NAME_BYTES = 255  # the limit of file systems


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder; with `vocab_only` its tensors are none. `notes` grows as it is read."""

    folder: Path
    config: dict[str, Any]
    vocab_only: bool = False
    notes: list[str] = field(default_factory=list, compare=False)

    @cached_property
    def tensors(self) -> dict[str, TensorRef]:
        """By name, files in sorted order and names sorted within each; no weights are read.

        They are looked for when first asked, so that a wrong kind of model is refused before files
        that are missing. NotFound, Denied, Damaged, Unsupported.
        """
        if self.vocab_only:
            return {}
        tensors = _index_tensors(self.folder, self.notes)
        return with_scales(tensors, quantization_of(self.folder, self.config))


@dataclass(frozen=True)
class _Form:
    """One form in which weights are published: the files' names, the index, the reader."""

    pattern: str
    index: str
    read: Callable[[Path], list[TensorRef]]


_FORMS = (
    _Form("model*.safetensors", "model.safetensors.index.json", read_header),
    _Form("pytorch_model*.bin", "pytorch_model.bin.index.json", read_pickle),
)


def open_checkpoint(folder: Path, *, vocab_only: bool = False) -> Checkpoint:
    """Open `folder` and read its config. NotFound, Denied, Damaged."""
    if not folder.exists():
        raise NotFound(
            f"{folder} does not exist",
            "give the folder of a checkpoint, or owner/name of one on the Hub",
        )
    config = folder / "config.json"
    if not config.is_file():
        what = "a file" if folder.is_file() else "not a checkpoint: it has no config.json"
        raise NotFound(
            f"{folder} is {what}",
            "a checkpoint is a folder with config.json, tokenizer files and "
            "model.safetensors or pytorch_model.bin (or shards of them with their index)",
        )
    return Checkpoint(folder, read_object(config), vocab_only)


def _index_tensors(folder: Path, notes: list[str]) -> dict[str, TensorRef]:
    for form in _FORMS:
        index = folder / form.index
        if index.is_file():
            return _read_indexed(folder, index, form, notes)
        paths = sorted(folder.glob(form.pattern))
        if paths:
            return _read_parts(paths, form)
    raise NotFound(
        f"{folder} has no weights",
        "looked for model.safetensors, pytorch_model.bin and their shards",
    )


def _read_parts(paths: list[Path], form: _Form) -> dict[str, TensorRef]:
    tensors: dict[str, TensorRef] = {}
    for path in paths:
        for tensor in form.read(path):
            if tensor.name in tensors:
                raise Damaged(f"{tensor.name} is in {tensors[tensor.name].path} and in {path}")
            tensors[tensor.name] = tensor
    return tensors


def _read_indexed(folder: Path, index: Path, form: _Form, notes: list[str]) -> dict[str, TensorRef]:
    """The shards that the index names; a whole file beside it where the index is an old one's."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) for name in weight_map.values()
    ):
        raise Damaged(f"{index} has no weight_map of names", "download it again")
    names = sorted(set(weight_map.values()))
    paths = [_inside(folder, index, name) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if not path.is_file()]
    whole = folder / index.name.removesuffix(".index.json")
    if missing and whole.is_file():
        notes.append(
            f"{index.name} is stale, it names {len(missing)} files that are not there: "
            f"{whole.name} is used"
        )
        return _read_parts([whole], form)
    if missing:
        raise NotFound(
            f"{folder} lacks {', '.join(missing)}, which {index.name} names",
            "download the missing files",
        )
    if whole.is_file() and whole not in paths:
        notes.append(f"{whole.name} is left out: {index.name} names the shards beside it")
    tensors = _read_parts(paths, form)
    lost = sorted(name for name in weight_map if name not in tensors)
    extra = sorted(name for name in tensors if name not in weight_map)
    if (lost or extra) and paths == [whole]:
        notes.append(f"{index.name} is stale, it names other tensors than {whole.name} holds")
    elif lost or extra:
        told = [f"no file holds {', '.join(lost)}"] if lost else []
        told += [f"the files hold also {', '.join(extra)}"] if extra else []
        raise Damaged(f"{index} and its files disagree: {'; '.join(told)}", "download them again")
    return tensors


def _inside(folder: Path, index: Path, name: str) -> Path:
    """The path of a file that the index names, which must be a plain name in the folder.

    Links are followed, as those of the Hub's cache or to another disk: whoever made the folder
    made them.
    """
    plain = len(PurePosixPath(name).parts) == 1 and name not in ("", ".", "..") and "\\" not in name
    if not plain or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise Damaged(
            f"{index} names {quoted(name)}, which is not a file name, or outside the folder"
        )
    return folder / name

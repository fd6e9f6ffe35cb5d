"""Torch archives without torch: the pickles that name tensors, and the zip files around them."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


class Global:
    """Pickles as a reference to a global of torch."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Storage:
    def __init__(self, kind: str, key: str, numel: int) -> None:
        self.parts = ("storage", Global("torch", kind), key, "cpu", numel)


class Reduce:
    def __init__(self, function: Global, arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments


class Pickler(pickle._Pickler):  # type: ignore[misc]
    """torch's pickles without torch: protocol 2, storages as persistent ids."""

    def persistent_id(self, value: object) -> object:
        return value.parts if isinstance(value, Storage) else None

    def save(self, value: object, save_persistent_id: bool = True) -> None:
        if isinstance(value, Global):
            self.write(b"c" + f"{value.module}\n{value.name}\n".encode())
        elif isinstance(value, Reduce):
            self.save(value.function)
            self.save(value.arguments)
            self.write(b"R")
        else:
            super().save(value, save_persistent_id)


REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED = Reduce(Global("collections", "OrderedDict"), ())


def tensor(
    kind: str,
    key: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    numel: int | None = None,
    offset: int = 0,
) -> Reduce:
    """A tensor's entry in the pickle."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    storage = Storage(kind, key, int(np.prod(shape)) if numel is None else numel)
    return Reduce(REBUILD, (storage, offset, shape, strides, False, ORDERED))


def pickled(value: object) -> bytes:
    """The bytes of a pickle."""
    out = io.BytesIO()
    Pickler(out, 2).dump(value)
    return out.getvalue()


def write_torch(path: Path, state: bytes, storages: dict[str, bytes]) -> None:
    """A torch archive."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", state)
        archive.writestr("model/byteorder", "little")
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)
        archive.writestr("model/version", "3\n")

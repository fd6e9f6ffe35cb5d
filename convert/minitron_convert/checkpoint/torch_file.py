"""Tensors of a `pytorch_model.bin`: a zip archive of raw storages and a pickle that names them."""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from minitron_convert.checkpoint.pickle_values import Name, PersistentId, RefusedPickle, load
from minitron_convert.checkpoint.safetensors import MAX_DIMENSIONS
from minitron_convert.checkpoint.tensor_ref import DTYPES, ForeignTensorRef, TensorRef
from minitron_core.errors import Damaged, Unsupported, from_os_error
from minitron_core.lfs_pointer import refuse_lfs_pointer
from minitron_core.quoting import quoted

MAX_PICKLE_BYTES = 64 << 20
_LOCAL_HEADER = 30

_DTYPE_OF_STORAGE = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
}


class _Tensor(NamedTuple):
    storage: PersistentId
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(
    storage: PersistentId, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "collections.OrderedDict": lambda items=(): dict(items),
}


def read_pickle(path: Path) -> list[TensorRef]:
    """The tensors of a file in its order; no code in it is run.

    NotFound, Denied, Unsupported (old format), Damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)
    except (OSError, *_NO_ARCHIVE) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file
            raise from_os_error(error, path, "read") from error
        with path.open("rb") as file:
            beginning = file.read(200)
        refuse_lfs_pointer(path, beginning)
        if beginning[:2] == b"\x80\x02":
            raise Unsupported(
                f"{path} is in torch's old format of before 2020",
                "load and save it with a newer torch, or look for a safetensors version",
            ) from error
        raise Damaged(
            f"{path} is cut off or not a torch file: {error}", "download it again"
        ) from error


# What zipfile raises for archives that are damaged, encrypted or compressed in unknown ways.
_NO_ARCHIVE = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)


def _read_archive(path: Path, archive: zipfile.ZipFile) -> list[TensorRef]:
    entries = {entry.filename: entry for entry in archive.infolist()}
    prefix = next((name[:-8] for name in entries if name.endswith("data.pkl")), None)
    if prefix is None:
        raise Damaged(f"{path} is not a torch file: it holds no data.pkl", "download it again")
    pickled = entries[f"{prefix}data.pkl"]
    if not _is_plain(pickled, min(MAX_PICKLE_BYTES, path.stat().st_size)):
        raise Damaged(f"{path} is not a torch file: its data.pkl is not plain", "download it again")
    order = entries.get(f"{prefix}byteorder")
    if order is not None and (not _is_plain(order, 8) or archive.read(order) != b"little"):
        raise Unsupported(f"{path} is big-endian")
    try:
        state = load(archive.read(pickled), _CALLS)
    except RefusedPickle as error:
        raise Damaged(
            f"{path} is not a plain state dictionary: {error}",
            "do not load this file with other tools unless you trust its source",
        ) from error
    if not isinstance(state, dict):
        raise Damaged(f"{path} has no dictionary of tensors")
    storages = {name: entry for name, entry in entries.items() if name.startswith(f"{prefix}data/")}
    return [_tensor(path, name, value, prefix, storages) for name, value in state.items()]


def _tensor(
    path: Path, name: Any, value: Any, prefix: str, storages: dict[str, zipfile.ZipInfo]
) -> TensorRef:
    if not isinstance(name, str) or not isinstance(value, _Tensor):
        raise Damaged(f"{path}: {quoted(name)} is not a tensor")
    if not _is_sound(value):
        raise Damaged(f"{path} describes {name} wrongly", "download it again")
    _, kind, key, _, numel = value.storage.value
    dtype = _DTYPE_OF_STORAGE.get(str(kind))
    if dtype is None:
        return ForeignTensorRef(name, value.shape, str(kind), path, 0, 0)
    if prod(value.shape) and not _is_row_major(value):
        return ForeignTensorRef(name, value.shape, dtype, path, 0, 0, "is not stored row by row")
    entry = storages.get(f"{prefix}data/{key}")
    size = DTYPES[dtype].itemsize
    end = value.offset + prod(value.shape)
    if (
        entry is None
        or entry.compress_type != zipfile.ZIP_STORED
        or entry.file_size < numel * size
        or end > numel
    ):
        raise Damaged(f"{path} does not hold all of {name}", "download it again")
    offset = _data_offset(path, entry) + value.offset * size
    return TensorRef(name, value.shape, dtype, path, offset)


def _is_plain(entry: zipfile.ZipInfo, most: int) -> bool:
    """Whether an entry is stored as it is, and says that it has at most so many bytes."""
    stored = entry.compress_type == zipfile.ZIP_STORED
    return stored and max(entry.file_size, entry.compress_size) <= most


def _is_sound(value: _Tensor) -> bool:
    if not isinstance(value.shape, tuple) or not isinstance(value.strides, tuple):
        return False
    numbers = (value.offset, *value.shape, *value.strides)
    reference = value.storage.value if isinstance(value.storage, PersistentId) else None
    return (
        all(type(number) is int and 0 <= number < 2**62 for number in numbers)
        and len(value.shape) == len(value.strides) <= MAX_DIMENSIONS
        and isinstance(reference, tuple)
        and len(reference) == 5
        and reference[0] == "storage"
        and isinstance(reference[1], Name)
        and type(reference[4]) is int
    )


def _is_row_major(value: _Tensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(value.shape), reversed(value.strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the entry's bytes begin: behind its local header, whose lengths are its own."""
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = entry.header_offset + _LOCAL_HEADER + lengths
    if header[:4] != b"PK\x03\x04" or offset + entry.file_size > path.stat().st_size:
        raise Damaged(f"{path} is cut off or not a torch file", "download it again")
    return offset

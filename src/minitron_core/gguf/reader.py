"""Read GGUF files: every length is checked against the file's size before it is used."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_core.errors import Damaged, NotFound, Unsupported, from_os_error
from minitron_core.gguf.shards import parse_shard_name
from minitron_core.gguf.types import TYPE, row_bytes, tensor_bytes
from minitron_core.gguf.values import KeyValue, MalformedValue, skip_string, skip_value
from minitron_core.lfs_pointer import refuse_lfs_pointer
from minitron_core.quoting import quoted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_NAME_BYTES = 63
MAX_DIMENSIONS = 4
# the levels of a model have one vocabulary: its bytes are compared, not parsed again
_long_values: dict[str, KeyValue] = {}
_LONG_VALUE, _LONGEST_VALUE = 1 << 14, 1 << 26  # bytes
_MOST_LONG_VALUES = 8


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a file: `shape` in ggml's order (fastest first), `offset` in the data section."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int

    @property
    def n_elements(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    @property
    def row_size(self) -> int:
        """Bytes of one row."""
        return row_bytes(self.type, self.shape[0] if self.shape else 1)

    @property
    def rows(self) -> int:
        """The number of rows (all dimensions but the first)."""
        return prod(self.shape[1:])


@dataclass(frozen=True)
class Gguf:
    """An open file; the weights stay on disk, mapped."""

    path: Path
    version: int
    metadata: dict[str, KeyValue]
    tensors: list[TensorInfo]
    alignment: int
    data_offset: int
    size: int
    _buffer: Any = field(repr=False, compare=False)
    _by_name: dict[str, TensorInfo] = field(repr=False, compare=False)

    def get(self, key: str, default: Any = None) -> Any:
        """The decoded value of `key`, or `default`."""
        entry = self.metadata.get(key)
        return default if entry is None else entry.value

    def tensor(self, name: str) -> TensorInfo:
        """The tensor called `name`; NotFound if there is none."""
        try:
            return self._by_name[name]
        except KeyError:
            raise NotFound(f"{self.path} has no tensor {name}") from None

    def data(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        """The tensor's bytes: a read-only mapped view of exactly `info.nbytes`."""
        start = self.data_offset + info.offset
        return self._bytes[start : start + info.nbytes]

    def release(self) -> None:
        """Free the memory that mapped views have filled; what is used later is read again."""
        if isinstance(self._buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._buffer.madvise(mmap.MADV_DONTNEED)

    @cached_property
    def _bytes(self) -> npt.NDArray[np.uint8]:
        import numpy as np  # here, so that a header alone is read without it

        return np.frombuffer(self._buffer, np.uint8)


def open_gguf(path: Path) -> Gguf:
    """Open and check one file. Raises NotFound, Denied, Unsupported (its version) or Damaged."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
    except OSError as error:
        raise from_os_error(error, path, "read") from error
    refuse_lfs_pointer(path, mapped)
    try:
        return _parse(path, mapped)
    except MalformedValue as error:
        raise Damaged(f"{path} is damaged: {error}", "download or convert it again") from error


def open_shards(path: Path) -> list[Gguf]:
    """The file, or all shards in order where it is the first of several.

    Raises as open_gguf; Unsupported for another shard than the first, Damaged for shards that do
    not belong together.
    """
    first = open_gguf(path)
    count = first.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return [first]
    name = parse_shard_name(path.name)
    if name is None or name.total != count:
        raise Damaged(
            f"the metadata of {path} counts {count} shards, and its name does not",
            f"name the shards NAME-00001-of-{count:05d}.gguf and so on",
        )
    names = name.all()
    if name.number != 1:
        raise Unsupported(f"{path} is not the first shard", f"give {path.with_name(names[0])}")
    shards = [first, *(open_gguf(path.with_name(other)) for other in names[1:])]
    _check_shards(shards, count)
    return shards


def _check_shards(shards: list[Gguf], count: int) -> None:
    for number, shard in enumerate(shards):
        if shard.get("split.no", -1) != number or shard.get("split.count") != count:
            raise Damaged(f"{shard.path} is not shard {number + 1} of {count}")
    names = [info.name for shard in shards for info in shard.tensors]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Damaged(f"the shards of {shards[0].path} hold the tensor {twice} twice")
    total = shards[0].get("split.tensors.count", len(names))
    if total != len(names):
        raise Damaged(f"the shards of {shards[0].path} hold {len(names)} tensors, not {total}")


def _parse(path: Path, buffer: Any) -> Gguf:
    if len(buffer) < 24 or buffer[:4] != MAGIC:
        raise MalformedValue("it does not begin with GGUF")
    version, n_tensors, n_values = struct.unpack_from("<IQQ", buffer, 4)
    if version not in (2, VERSION):
        foreign = "big-endian" if version & 0xFFFF == 0 else f"of GGUF version {version}"
        raise Unsupported(f"{path} is {foreign}, not of version 2 or 3 and little-endian")
    # The smallest entry is a key's length, one byte, a type and one byte of value; of a
    # tensor: name length, dimensions, type, offset.
    if n_values * 14 + n_tensors * 24 > len(buffer):
        raise MalformedValue(f"{n_values} keys and {n_tensors} tensors do not fit into the file")
    metadata, position = _read_metadata(buffer, 24, n_values)
    alignment = _alignment(metadata)
    tensors, position = _read_tensors(buffer, position, n_tensors)
    data_offset = -(-position // alignment) * alignment if tensors else position
    _check_offsets(tensors, alignment, len(buffer) - data_offset)
    by_name = {info.name: info for info in tensors}
    return Gguf(
        path, version, metadata, tensors, alignment, data_offset, len(buffer), buffer, by_name
    )


def _read_metadata(buffer: Any, position: int, count: int) -> tuple[dict[str, KeyValue], int]:
    metadata: dict[str, KeyValue] = {}
    for _ in range(count):
        key, position = _read_string(buffer, position)
        if not key or key in metadata:
            raise MalformedValue(f"it has the key {quoted(key)} twice" if key else "a key is empty")
        value_type, position = _unpack(buffer, position, "<I")
        metadata[key] = _read_value(buffer, position, key, value_type)
        position += len(metadata[key].raw)
    return metadata, position


def _read_value(buffer: Any, position: int, key: str, value_type: int) -> KeyValue:
    known = _long_values.get(key)
    if known is not None and known.type == value_type and known.stands_at(buffer, position):
        return KeyValue(key, value_type, known.raw)  # the bytes are shared, the decoded value not
    try:
        end = skip_value(buffer, position, value_type)
    except MalformedValue as error:
        raise MalformedValue(f"at the key {quoted(key)}, {error}") from error
    value = KeyValue(key, value_type, bytes(buffer[position:end]))
    if _LONG_VALUE <= len(value.raw) <= _LONGEST_VALUE:
        if len(_long_values) >= _MOST_LONG_VALUES:
            _long_values.clear()
        _long_values[key] = KeyValue(key, value_type, value.raw)
    return value


def _alignment(metadata: dict[str, KeyValue]) -> int:
    entry = metadata.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    value = entry.value
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise MalformedValue(f"its alignment {quoted(value)} is not a power of two")
    return value


def _read_tensors(buffer: Any, position: int, count: int) -> tuple[list[TensorInfo], int]:
    tensors: list[TensorInfo] = []
    names: set[str] = set()
    for _ in range(count):
        info, position = _read_tensor(buffer, position)
        if info.name in names:
            raise MalformedValue(f"it has the tensor {info.name} twice")
        names.add(info.name)
        tensors.append(info)
    return tensors, position


def _read_tensor(buffer: Any, position: int) -> tuple[TensorInfo, int]:
    name, end = _read_string(buffer, position)
    if not 0 < end - position - 8 <= MAX_NAME_BYTES:
        raise MalformedValue(f"a tensor's name has {end - position - 8} bytes, not 1 to 63")
    n_dims, position = _unpack(buffer, end, "<I")
    if n_dims > MAX_DIMENSIONS:
        raise MalformedValue(f"the tensor {name} has {n_dims} dimensions, more than 4")
    shape = []
    for _ in range(n_dims):
        dimension, position = _unpack(buffer, position, "<q")
        shape.append(dimension)
    tensor_type, position = _unpack(buffer, position, "<I")
    offset, position = _unpack(buffer, position, "<Q")
    if min(shape, default=1) < 0 or prod(shape) >= 2**63:
        raise MalformedValue(f"the tensor {name} has the impossible shape {shape}")
    if tensor_type not in TYPE:
        raise MalformedValue(f"the tensor {name} has the unknown type {tensor_type}")
    try:
        nbytes = tensor_bytes(tensor_type, shape)
    except ValueError as error:
        raise MalformedValue(f"in the tensor {name}, {error}") from error
    return TensorInfo(name, tuple(shape), tensor_type, offset, nbytes), position


def _check_offsets(tensors: list[TensorInfo], alignment: int, available: int) -> None:
    end = 0
    for info in sorted(tensors, key=lambda info: (info.offset, info.nbytes)):
        if info.offset % alignment:
            raise MalformedValue(f"the tensor {info.name} begins at an unaligned offset")
        if info.offset < end:
            raise MalformedValue(f"the tensor {info.name} overlaps another")
        end = info.offset + info.nbytes
        if end > available:
            raise MalformedValue(f"it is cut off: the tensor {info.name} reaches beyond its end")


def _read_string(buffer: Any, position: int) -> tuple[str, int]:
    end = skip_string(buffer, position)
    return bytes(buffer[position + 8 : end]).decode("utf-8", "surrogateescape"), end


def _unpack(buffer: Any, position: int, layout: str) -> tuple[int, int]:
    end = position + struct.calcsize(layout)
    if end > len(buffer):
        raise MalformedValue("the file ends within its header")
    return struct.unpack_from(layout, buffer, position)[0], end


def iterate_tensors(shards: list[Gguf]) -> Iterator[tuple[Gguf, TensorInfo]]:
    """Every tensor of a model with the shard that holds it, in file order."""
    for shard in shards:
        for info in shard.tensors:
            yield shard, info

"""Importance matrix files: llama.cpp's GGUF format and the older .dat, read and written.

Layouts: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp (llama.cpp 0c1e57098).
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minitron_convert.gguf_file import (
    F32,
    Gguf,
    GgufWriter,
    KeyValue,
    TensorInfo,
    TensorSpec,
    ValueType,
    open_gguf,
)
from minitron_engine.errors import Damaged, Denied, NotFound
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix
from minitron_quant.whole_files import write_whole

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNKS, _CHUNK_SIZE = (
    "imatrix.datasets",
    "imatrix.chunk_count",
    "imatrix.chunk_size",
)
_MAX_NAME = 4096


def read_imatrix(path: Path) -> ImportanceMatrix:
    """Read either format; NotFound, or Damaged with what is wrong."""
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise NotFound(
            f"{path} does not exist", "make one: minitron imatrix MODEL -f TEXT"
        ) from error
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}") from error
    matrix = _from_gguf(open_gguf(path)) if magic == b"GGUF" else _from_dat(path)
    if not matrix.entries:
        raise Damaged(f"{path} holds no importance matrix entries")
    return matrix


def _from_gguf(file: Gguf) -> ImportanceMatrix:
    missing = [key for key in (_DATASETS, _CHUNKS, _CHUNK_SIZE) if key not in file.metadata]
    if missing:
        raise Damaged(f"{file.path} is no importance matrix: it lacks {', '.join(missing)}")
    matrix = ImportanceMatrix(
        datasets=[str(name) for name in file.get(_DATASETS)],
        chunk_count=int(file.get(_CHUNKS)),
        chunk_size=int(file.get(_CHUNK_SIZE)),
    )
    tensors = {info.name: info for info in file.tensors}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        weight = name.removesuffix(_SUMS)
        counts = tensors.get(weight + _COUNTS)
        if counts is None:
            raise Damaged(f"{file.path} has sums but no counts for {weight}")
        matrix.entries[weight] = _entry(file, weight, sums, counts)
    return matrix


def _entry(file: Gguf, weight: str, sums: TensorInfo, counts: TensorInfo) -> Entry:
    if sums.type != F32 or counts.type != F32:
        raise Damaged(f"{file.path}: sums and counts of {weight} must be F32")
    count = file.data(counts).view(np.float32)
    total = file.data(sums).view(np.float32)
    if not len(count) or not len(total) or len(total) % len(count):
        raise Damaged(f"{file.path}: {len(total)} sums for {len(count)} counts of {weight}")
    if not np.isfinite(total).all() or not np.isfinite(count).all() or (count < 0).any():
        raise Damaged(f"{file.path}: the statistics of {weight} are not finite")
    shaped = total.reshape(len(count), -1).copy()
    return Entry(shaped, count.astype(np.int64))


def _from_dat(path: Path) -> ImportanceMatrix:
    reader = _DatReader(path)
    matrix = ImportanceMatrix()
    for _ in range(reader.integer("the number of entries")):
        name = reader.text("a name")
        calls = reader.integer("calls")
        values = reader.floats(f"values of {name}")
        if not np.isfinite(values).all():
            raise Damaged(f"{path}: the statistics of {name} are not finite")
        # a file written by an early version may say 0 calls, and means the values as they are
        counts = np.array([max(calls, 1)], dtype=np.int64)
        matrix.entries[name] = Entry(values[None, :].copy(), counts)
    if reader.left:
        matrix.chunk_count = reader.integer("the number of chunks")
        matrix.datasets = [reader.text("the data set")]
    return matrix


class _DatReader:
    """Little-endian fields of a .dat file, with every length checked before it is believed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = path.read_bytes()
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def _take(self, size: int, what: str) -> bytes:
        if not 0 <= size <= self.left:
            raise Damaged(f"{self._path} is no importance matrix, or is cut off at {what}")
        self._at += size
        return self._data[self._at - size : self._at]

    def integer(self, what: str) -> int:
        value: int = struct.unpack("<i", self._take(4, what))[0]
        return value

    def text(self, what: str) -> str:
        size = self.integer(what)
        if size > _MAX_NAME:
            raise Damaged(f"{self._path} is no importance matrix: {what} of {size} bytes")
        return self._take(size, what).decode("utf-8", errors="replace")

    def floats(self, what: str) -> NDArray[np.float32]:
        count = self.integer(what)
        if count < 1:
            raise Damaged(f"{self._path} is no importance matrix: {count} {what}")
        return np.frombuffer(self._take(4 * count, what), dtype="<f4")


def write_imatrix(path: Path, matrix: ImportanceMatrix, file_format: str = "gguf") -> None:
    """Write `gguf` or `dat`, entries sorted by name; the file appears whole or not at all."""
    if file_format == "dat":
        write_whole(path, _dat_bytes(matrix))
        return
    metadata = [
        KeyValue.of("general.type", ValueType.STRING, "imatrix"),
        KeyValue.of(_DATASETS, ValueType.ARRAY, matrix.datasets, ValueType.STRING),
        KeyValue.of(_CHUNKS, ValueType.UINT32, matrix.chunk_count),
        KeyValue.of(_CHUNK_SIZE, ValueType.UINT32, matrix.chunk_size),
    ]
    specs, arrays = [], []
    for name, entry in sorted(matrix.entries.items()):
        matrices = len(entry.counts)
        columns = entry.sums.size // matrices
        # ggml leaves dimensions of 1 at the end out of a file
        specs.append(TensorSpec(name + _SUMS, (columns, matrices)[: 1 + (matrices > 1)], F32))
        specs.append(TensorSpec(name + _COUNTS, (1, matrices)[: 1 + (matrices > 1)], F32))
        arrays += [entry.sums.astype("<f4"), entry.counts.astype("<f4")]
    with GgufWriter(path, metadata, specs) as writer:
        for array in arrays:
            writer.write(array.tobytes())


def _dat_bytes(matrix: ImportanceMatrix) -> bytes:
    # entries that no token reached are left out, as llama-imatrix does
    reached = {name: entry for name, entry in matrix.entries.items() if entry.counts.any()}
    parts = [struct.pack("<i", len(reached))]
    for name, entry in sorted(reached.items()):
        calls = -(-int(entry.counts.max()) // max(matrix.chunk_size, 1))
        means = ImportanceMatrix({name: entry}).weights()[name]
        values = (means * np.float32(calls)).astype("<f4").tobytes()
        parts += [_dat_text(name), struct.pack("<ii", calls, len(values) // 4), values]
    parts += [struct.pack("<i", matrix.chunk_count), _dat_text((matrix.datasets or [""])[-1])]
    return b"".join(parts)


def _dat_text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<i", len(data)) + data

"""Importance matrix files: read and write llama.cpp's GGUF format and the older .dat.

Layouts: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp (llama.cpp 0c1e57098). Our GGUF
files add two things that llama.cpp ignores: sums of x as `{weight}.in_sum`, as in llama.cpp's pull
request 14891, and the origin under `minitron.imatrix.*`.
"""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Damaged, Denied, NotFound
from minitron_core.gguf import (
    F32,
    Gguf,
    GgufWriter,
    KeyValue,
    TensorInfo,
    TensorSpec,
    ValueType,
    open_gguf,
)
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix
from minitron_quant.provenance import CalibrationOrigin

_SUMS, _COUNTS, _TOTALS = ".in_sum2", ".counts", ".in_sum"
_DATASETS, _CHUNKS, _CHUNK_SIZE = (
    "imatrix.datasets",
    "imatrix.chunk_count",
    "imatrix.chunk_size",
)
_MODEL, _TEXTS = "minitron.imatrix.model", "minitron.imatrix.texts"
_MAX_NAME = 4096
_MAX_COUNT = 2.0**53


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
        raise Damaged(f"{file.path} is not an importance matrix: it lacks {', '.join(missing)}")
    matrix = ImportanceMatrix(
        datasets=[str(name) for name in file.get(_DATASETS)],
        chunk_count=int(file.get(_CHUNKS)),
        chunk_size=int(file.get(_CHUNK_SIZE)),
        origin=_origin(file),
    )
    tensors = {info.name: info for info in file.tensors}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        weight = name.removesuffix(_SUMS)
        counts = tensors.get(weight + _COUNTS)
        if counts is None:
            raise Damaged(f"{file.path} has sums but no counts for {weight}")
        matrix.entries[weight] = _entry(file, weight, sums, counts, tensors.get(weight + _TOTALS))
    return matrix


def _origin(file: Gguf) -> CalibrationOrigin | None:
    model = file.get(_MODEL)
    if model is None:
        return None
    return CalibrationOrigin(str(model), tuple(str(text) for text in file.get(_TEXTS) or ()))


def _entry(
    file: Gguf, weight: str, sums: TensorInfo, counts: TensorInfo, totals: TensorInfo | None
) -> Entry:
    count, squares = _floats(file, counts), _floats(file, sums)
    if not len(count) or not len(squares) or len(squares) % len(count):
        raise Damaged(f"{file.path}: {len(squares)} sums for {len(count)} counts of {weight}")
    if (count < 0).any() or (count > _MAX_COUNT).any():
        raise Damaged(f"{file.path}: {counts.name} is negative or too large")
    entry = Entry(squares.reshape(len(count), -1).copy(), count.astype(np.int64))
    if totals is not None:
        plain = _floats(file, totals)
        if len(plain) != len(squares):
            raise Damaged(f"{file.path}: {len(plain)} values in {totals.name}, not {len(squares)}")
        entry.totals = plain.astype(np.float64).reshape(entry.sums.shape)
    return entry


def _floats(file: Gguf, info: TensorInfo) -> NDArray[np.float32]:
    if info.type != F32:
        raise Damaged(f"{file.path}: {info.name} must be F32")
    values = file.data(info).view(np.float32)
    if not np.isfinite(values).all():
        raise Damaged(f"{file.path}: {info.name} is not finite")
    return values


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
    """Little-endian fields of a .dat file; every length is checked before it is used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = path.read_bytes()
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def _take(self, size: int, what: str) -> bytes:
        if not 0 <= size <= self.left:
            raise Damaged(f"{self._path} is not an importance matrix, or is cut off at {what}")
        self._at += size
        return self._data[self._at - size : self._at]

    def integer(self, what: str) -> int:
        value: int = struct.unpack("<i", self._take(4, what))[0]
        return value

    def text(self, what: str) -> str:
        size = self.integer(what)
        if size > _MAX_NAME:
            raise Damaged(f"{self._path} is not an importance matrix: {what} of {size} bytes")
        return self._take(size, what).decode("utf-8", errors="replace")

    def floats(self, what: str) -> NDArray[np.float32]:
        count = self.integer(what)
        if count < 1:
            raise Damaged(f"{self._path} is not an importance matrix: {count} {what}")
        return np.frombuffer(self._take(4 * count, what), dtype="<f4")


def write_imatrix(path: Path, matrix: ImportanceMatrix, file_format: str = "gguf") -> None:
    """Write `gguf` or `dat`, entries sorted by name; the file appears whole or not at all.

    GGUF files of a `plain` matrix are llama-imatrix's to the byte; .dat files are in any case.
    """
    if file_format == "dat":
        write_whole(path, _dat_bytes(matrix))
        return
    specs, arrays = [], []
    for name, entry in sorted(matrix.entries.items()):
        matrices = len(entry.counts)
        # ggml leaves dimensions of 1 at the end out of a file
        shape = (entry.sums.size // matrices, matrices)[: 1 + (matrices > 1)]
        specs.append(TensorSpec(name + _SUMS, shape, F32))
        specs.append(TensorSpec(name + _COUNTS, (1, *shape[1:]), F32))
        arrays += [entry.sums.astype("<f4"), entry.counts.astype("<f4")]
        if entry.totals is not None:
            specs.append(TensorSpec(name + _TOTALS, shape, F32))
            arrays.append(entry.totals.astype("<f4"))
    with GgufWriter(path, _metadata(matrix), specs) as writer:
        for array in arrays:
            writer.write(array.tobytes())


def _metadata(matrix: ImportanceMatrix) -> list[KeyValue]:
    metadata = [
        KeyValue.of("general.type", ValueType.STRING, "imatrix"),
        KeyValue.of(_DATASETS, ValueType.ARRAY, matrix.datasets, ValueType.STRING),
        KeyValue.of(_CHUNKS, ValueType.UINT32, matrix.chunk_count),
        KeyValue.of(_CHUNK_SIZE, ValueType.UINT32, matrix.chunk_size),
    ]
    if matrix.origin is not None:
        texts = list(matrix.origin.texts)
        metadata.append(KeyValue.of(_MODEL, ValueType.STRING, matrix.origin.model))
        metadata.append(KeyValue.of(_TEXTS, ValueType.ARRAY, texts, ValueType.STRING))
    return metadata


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
    data = text.encode(errors="surrogateescape")
    return struct.pack("<i", len(data)) + data

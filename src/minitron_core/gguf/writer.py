"""Write GGUF files: header first, data in pieces of any size, the file appears whole at the end."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from minitron_core.errors import Damaged, from_os_error
from minitron_core.file_lock import open_locked
from minitron_core.gguf.reader import (
    DEFAULT_ALIGNMENT,
    MAGIC,
    MAX_DIMENSIONS,
    MAX_NAME_BYTES,
    VERSION,
    open_gguf,
)
from minitron_core.gguf.types import tensor_bytes
from minitron_core.gguf.values import KeyValue, encode_string

if TYPE_CHECKING:
    import numpy.typing as npt
    from typing_extensions import Buffer

# bytes after which the system is asked to write them to the disk
_WINDOW_BYTES = 64 << 20
# bytes that are read and hashed at a time
_CHUNK_BYTES = 1 << 18


class Digest(Protocol):
    """A hashlib object."""

    def update(self, data: Buffer, /) -> None: ...


class TensorSpec(NamedTuple):
    """A tensor to write: `shape` in ggml's order (fastest first), `type` a ggml type id."""

    name: str
    shape: tuple[int, ...]
    type: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor without padding."""
        return tensor_bytes(self.type, self.shape)


def padded(size: int, alignment: int) -> int:
    """`size` rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def alignment_of(metadata: Sequence[KeyValue]) -> int:
    """The alignment of the data that readers take from a file's metadata."""
    found = (entry.value for entry in metadata if entry.key == "general.alignment")
    return int(next(found, DEFAULT_ALIGNMENT))


def encode_header(metadata: Sequence[KeyValue], tensors: Sequence[TensorSpec]) -> bytes:
    """Everything before the data section, padding included.

    Raises ValueError for a name or a shape that GGUF does not allow.
    """
    alignment = alignment_of(metadata)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    parts += [entry.encoded() for entry in metadata]
    offset = 0
    for tensor in tensors:
        name = encode_string(tensor.name)
        if len(name) - 8 > MAX_NAME_BYTES or len(tensor.shape) > MAX_DIMENSIONS:
            raise ValueError(f"{tensor.name} {tensor.shape}: name or shape too long for GGUF")
        n = len(tensor.shape)
        parts.append(name + struct.pack(f"<I{n}QIQ", n, *tensor.shape, tensor.type, offset))
        offset += padded(tensor.nbytes, alignment)
    header = b"".join(parts)
    return header.ljust(padded(len(header), alignment), b"\0")


def file_size(metadata: Sequence[KeyValue], tensors: Sequence[TensorSpec]) -> int:
    """The exact size in bytes of the file with this metadata and these tensors."""
    alignment = alignment_of(metadata)
    data = sum(padded(tensor.nbytes, alignment) for tensor in tensors)
    return len(encode_header(metadata, tensors)) + data


class GgufWriter:
    """Writes one file to `.<name>.partial` and renames it when finished.

    As a context manager it finishes on success and removes the partial on an exception.
    With `resume_tensors=k, resume_bytes=n` it continues an existing partial with the same header
    after its first k tensors and n bytes of the next; Damaged if the partial belongs to another
    file, NotFound if there is none.
    `digest` (a hashlib object) gets every byte of the file in order, also those already there.
    Raises OutOfResources, Denied, MinitronError where another process is writing the same file;
    ValueError where the data does not fit the tensors.
    """

    def __init__(
        self,
        path: Path,
        metadata: Sequence[KeyValue],
        tensors: Sequence[TensorSpec],
        *,
        resume_tensors: int = 0,
        resume_bytes: int = 0,
        digest: Digest | None = None,
    ) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self.tensors = list(tensors)
        self.alignment = alignment = alignment_of(metadata)
        header = encode_header(metadata, tensors)
        self.header_size = len(header)
        self.total_size = len(header) + sum(padded(t.nbytes, alignment) for t in tensors)
        self._next = resume_tensors
        self._written = resume_bytes
        self._on_the_way = 0
        self._digest = digest
        try:
            self._file = (
                self._reopen(header) if resume_tensors or resume_bytes else self._create(header)
            )
        except OSError as error:
            raise from_os_error(error, self.partial, "write") from error

    def _create(self, header: bytes) -> IO[bytes]:
        file = open_locked(self.partial, create=True)
        try:
            file.truncate(0)
            self._append(file, header)
        except OSError:
            self.partial.unlink()
            file.close()
            raise
        return file

    def _reopen(self, header: bytes) -> IO[bytes]:
        done = self.tensors[: self._next]
        end = len(header) + sum(padded(tensor.nbytes, self.alignment) for tensor in done)
        end += self._written
        file = open_locked(self.partial, create=False)
        if file.read(len(header)) != header or file.seek(0, os.SEEK_END) < end:
            file.close()
            raise Damaged(
                f"{self.partial} is not the beginning of {self.path.name}",
                "remove it and start over",
            )
        file.truncate(end)
        file.seek(0)
        if self._digest is not None:
            while data := file.read(_CHUNK_BYTES):
                self._digest.update(data)
        file.seek(end)
        return file

    def _append(self, file: IO[bytes], data: Buffer) -> None:
        view = memoryview(data)
        if self._digest is not None:
            self._digest.update(view)
        _write_all(file, view)

    @property
    def tensors_written(self) -> int:
        """How many tensors are complete."""
        return self._next

    @property
    def bytes_written(self) -> int:
        """How many bytes of the tensor after them."""
        return self._written

    def write(self, data: Buffer | npt.NDArray[Any]) -> None:
        """Append bytes to the current tensor; once it is full, the next one begins."""
        view = _as_bytes(data)
        if not view.nbytes:
            return
        self._skip_empty()
        if self._next >= len(self.tensors):
            raise ValueError(f"{self.path.name}: more data than tensors")
        tensor = self.tensors[self._next]
        written = self._written + len(view)
        if written > tensor.nbytes:
            raise ValueError(f"{tensor.name}: {written} bytes for {tensor.nbytes}")
        full = written == tensor.nbytes
        try:
            self._append(self._file, view)
            if full:
                padding = padded(tensor.nbytes, self.alignment) - tensor.nbytes
                self._append(self._file, bytes(padding))
            self._start_writing()
        except OSError as error:
            raise from_os_error(error, self.partial, "write") from error
        self._next, self._written = (self._next + 1, 0) if full else (self._next, written)

    def _start_writing(self) -> None:
        """Have the system write to the disk now instead of keeping everything until the end.

        Many gigabytes in its cache make each further one slower, several times on some disks.
        """
        end = self._file.tell()
        size = end - self._on_the_way
        if size >= _WINDOW_BYTES and hasattr(os, "posix_fadvise"):
            # starts the writing of pages that are not on the disk yet; none of them is dropped
            with suppress(OSError):  # it is only advice
                os.posix_fadvise(
                    self._file.fileno(), self._on_the_way, size, os.POSIX_FADV_DONTNEED
                )
            self._on_the_way = end

    def _skip_empty(self) -> None:
        while self._next < len(self.tensors) and not self.tensors[self._next].nbytes:
            self._next += 1

    def sync(self) -> None:
        """Bring everything written so far to the disk."""
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise from_os_error(error, self.partial, "write") from error

    def finish(self) -> None:
        """Complete the file: it appears under its name, or this raises an error."""
        self._skip_empty()
        if self._next != len(self.tensors) or self._written:
            raise ValueError(f"{self.path.name} has {self._next} of {len(self.tensors)} tensors")
        try:
            os.fsync(self._file.fileno())
            open_gguf(self.partial)  # nothing gets its name that cannot be read
            self.partial.replace(self.path)
            self._file.close()
            sync_folder(self.path.parent)
        except OSError as error:
            raise from_os_error(error, self.path, "write") from error

    def close(self) -> None:
        """Close the partial file and keep it, to be resumed."""
        self._file.close()

    def abort(self) -> None:
        """Remove the partial file while it is still locked, then close it."""
        if not self._file.closed:
            self.partial.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> GgufWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.finish()
        except BaseException:
            self.abort()
            raise


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the system can open a folder."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_bytes(data: Buffer | npt.NDArray[Any]) -> memoryview:
    view = memoryview(cast("Buffer", data))
    return view.cast("B") if view.nbytes else memoryview(b"")


def _write_all(file: IO[bytes], view: memoryview) -> None:
    while view.nbytes:
        view = view[file.write(view) :]

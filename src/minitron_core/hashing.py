"""Hashes: of a file, of the inputs of a result, and of a model independent of its types."""

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from pathlib import Path

from minitron_core import stop
from minitron_core.gguf import F32, Gguf

_CHUNK_BYTES = 1 << 18
# Files of this size are hashed once by a process: one larger than memory comes from the disk each
# time it is read.
_REMEMBERED_BYTES = 1 << 26
_Identity = tuple[int, ...]
_hashed: dict[_Identity, str] = {}


def file_sha256(path: Path, given_up: threading.Event | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal; a large one is read once by a process.

    Raises CancelledError once `given_up` is set, OSError where the file cannot be read; without
    `given_up` KeyboardInterrupt after a request to stop.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        before = _identity(file.fileno())
        if before in _hashed:
            return _hashed[before]
        while size := file.readinto(buffer):
            if given_up is None:
                stop.check()
            elif given_up.is_set():
                raise CancelledError
            digest.update(memoryview(buffer)[:size])
        found = digest.hexdigest()
        if file.tell() >= _REMEMBERED_BYTES and _identity(file.fileno()) == before:
            _hashed[before] = found
    return found


def _identity(descriptor: int) -> _Identity:
    """What changes when a file does: its device, inode, size and times."""
    of = os.fstat(descriptor)
    return of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns


def fingerprint(*parts: str | bytes) -> str:
    """One SHA-256 over all parts, each with its length, so that different lists differ."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def model_fingerprint(shards: Sequence[Gguf]) -> str:
    """A SHA-256 that all levels of a model share and other models do not.

    It covers names and shapes of all tensors and the values of the vectors (norms, biases), which
    stay F32 at every level.
    """
    parts: list[str | bytes] = []
    tensors = [(info.name, info, shard) for shard in shards for info in shard.tensors]
    for name, info, shard in sorted(tensors, key=lambda tensor: tensor[0]):
        parts.append(f"{name} {tuple(info.shape)}")
        if len(info.shape) == 1 and info.type == F32:
            parts.append(hashlib.sha256(shard.data(info).data).digest())
    return fingerprint(*parts)

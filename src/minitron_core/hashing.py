"""Hashes: of a file, of the inputs of a result, and of a model independent of its types."""

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from pathlib import Path

from minitron_core import stop
from minitron_core.gguf import F32, Gguf

_CHUNK_BYTES = 1 << 18


def file_sha256(path: Path, given_up: threading.Event | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Raises CancelledError once `given_up` is set, OSError where the file cannot be read; without
    `given_up` KeyboardInterrupt after a request to stop.
    """
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            if given_up is None:
                stop.check()
            elif given_up.is_set():
                raise CancelledError
            digest.update(memoryview(buffer)[:size])
    return digest.hexdigest()


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

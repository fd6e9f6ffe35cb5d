"""Prompt caches: the state of a sequence as a file, bound to its model."""

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_core.gguf import shard_paths
from minitron_engine.generation.sequence import Sequence
from minitron_engine.llama.library import LLAMA_CPP_COMMIT

_MAGIC = b"minitron prompt cache 1\n"
_WHOLE = 1 << 24  # bytes; larger files are sampled
_SAMPLES, _SAMPLE = 256, 1 << 12


@dataclass(frozen=True)
class CacheKey:
    """What a cache depends on: the hash of its model, and the settings of the KV cache."""

    model: str
    settings: str

    @property
    def bytes(self) -> bytes:
        """A hash of both, and of the llama.cpp that wrote it."""
        parts = json.dumps([self.model, self.settings, LLAMA_CPP_COMMIT])
        return hashlib.sha256(parts.encode()).digest()


def model_hash(path: Path) -> str:
    """A hash of a model's files: sizes, the first 16 MiB, and 256 blocks of 4 KiB of the rest.

    Sampling keeps it quick for large models, whose headers already differ between levels.
    """
    digest = hashlib.sha256()
    for file in shard_paths(path):
        size = file.stat().st_size
        digest.update(struct.pack("<q", size))
        with file.open("rb") as data:
            digest.update(data.read(_WHOLE))
            for sample in range(_SAMPLES if size > _WHOLE else 0):
                data.seek(_WHOLE + (size - _WHOLE) * sample // _SAMPLES)
                digest.update(data.read(_SAMPLE))
    return digest.hexdigest()


def dump(sequence: Sequence, key: CacheKey) -> bytes:
    """The bytes of a cache file: magic, key, checksum, token ids, llama.cpp's state."""
    tokens = np.array(sequence.tokens, dtype="<i4").tobytes()
    body = struct.pack("<q", len(sequence)) + tokens + sequence.state()
    return _MAGIC + key.bytes + hashlib.sha256(body).digest() + body


def restore(sequence: Sequence, data: bytes, key: CacheKey) -> str:
    """Fill an empty sequence from a cache file; returns why it cannot, or an empty text."""
    start = len(_MAGIC)
    bound, checksum = data[start : start + 32], data[start + 32 : start + 64]
    body = data[start + 64 :]
    if not data.startswith(_MAGIC):
        return "it is not a prompt cache"
    if bound != key.bytes:
        return "it belongs to another model or other settings"
    if hashlib.sha256(body).digest() != checksum:
        return "it is damaged"
    (count,) = struct.unpack_from("<q", body)
    tokens = np.frombuffer(body, dtype="<i4", count=count, offset=8)
    if count > sequence.context.n_ctx:
        return "it does not fit into the context"
    if not sequence.restore(tokens.tolist(), body[8 + 4 * count :]):
        return "llama.cpp cannot read it"
    return ""

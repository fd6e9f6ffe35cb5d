"""What an importance matrix was made from, so that one of another model is recognized."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from minitron_convert.gguf_file import F32, Gguf
from minitron_quant.imatrix.matrix import Origin
from minitron_quant.models import open_model_files
from minitron_quant.quantize.journal import file_sha256, fingerprint


def origin_of(model: Path, texts: Sequence[Path]) -> Origin:
    """The origin of a matrix made with these files."""
    hashes = tuple(file_sha256(text) for text in texts)
    return Origin(model_fingerprint(open_model_files(model)), hashes)


def model_fingerprint(shards: Sequence[Gguf]) -> str:
    """SHA-256 that a model's files of every type and level share, and other models do not.

    It covers names and shapes of all tensors and the values of the vectors (norms, biases), which
    stay F32 whatever the matrices become.
    """
    parts: list[str | bytes] = []
    tensors = [(info.name, info, shard) for shard in shards for info in shard.tensors]
    for name, info, shard in sorted(tensors, key=lambda tensor: tensor[0]):
        parts.append(f"{name} {tuple(info.shape)}")
        if len(info.shape) == 1 and info.type == F32:
            parts.append(hashlib.sha256(shard.data(info).data).digest())
    return fingerprint(*parts)

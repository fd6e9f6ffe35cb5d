"""A description of a GGUF file, read from its header alone."""

from collections import Counter
from pathlib import Path
from typing import Any

from minitron_core.gguf import TYPE, Gguf, KeyValue, iterate_tensors, open_shards
from minitron_core.hashing import file_sha256
from minitron_quant.levels import level_of_ftype

# longer arrays, such as the vocabulary, are described by their length
_LONG_ARRAY = 16


def describe(path: Path, with_tensors: bool = False, with_hashes: bool = False) -> dict[str, Any]:
    """Metadata, sizes in bytes, types; a first shard stands for all.

    with_hashes: also the SHA-256 of each file, which reads all of it.
    """
    shards = open_shards(path)
    tensors = [info for _, info in iterate_tensors(shards)]
    weights = sum(info.n_elements for info in tensors)
    data = sum(info.nbytes for info in tensors)
    first = shards[0]
    description: dict[str, Any] = {
        "files": [shard.path.name for shard in shards],
        "architecture": str(first.get("general.architecture", "")),
        "level": level_of_ftype(first.get("general.file_type")),
        "bytes": sum(shard.size for shard in shards),
        "weights": weights,
        "bits_per_weight": round(8 * data / weights, 4) if weights else 0.0,
        "types": dict(Counter(TYPE[info.type].name for info in tensors).most_common()),
        "gguf_version": first.version,
        "alignment": first.alignment,
        "tokenizer": _tokenizer(first),
        "imatrix": _imatrix(first),
        "metadata": {key: plain(entry) for key, entry in first.metadata.items()},
    }
    if with_tensors:
        description["tensors"] = [
            {
                "name": info.name,
                "type": TYPE[info.type].name,
                "shape": list(info.shape),
                "bytes": info.nbytes,
                "offset": info.offset,
            }
            for info in tensors
        ]
    if with_hashes:
        description["sha256"] = {shard.path.name: file_sha256(shard.path) for shard in shards}
    return description


def _tokenizer(file: Gguf) -> dict[str, Any]:
    """What the vocabulary is; `chat_template` is the template's length in characters."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    template = file.get("tokenizer.chat_template")
    return {
        "model": file.get("tokenizer.ggml.model"),
        "pre": file.get("tokenizer.ggml.pre"),
        "tokens": len(tokens.value) if tokens is not None else 0,
        "chat_template": len(template) if isinstance(template, str) else None,
    }


def _imatrix(file: Gguf) -> dict[str, Any] | None:
    """What the quantizer was given: the matrix's file, its text, its entries and chunks."""
    names = ("file", "dataset", "entries_count", "chunks_count")
    values = {name: file.get(f"quantize.imatrix.{name}") for name in names}
    return values if any(value is not None for value in values.values()) else None


def plain(entry: KeyValue) -> Any:
    """A value for JSON; a long array becomes its length and its beginning."""
    value = entry.value
    if entry.element_type is None:
        return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
    items = [item.tolist() if hasattr(item, "tolist") else item for item in value[:_LONG_ARRAY]]
    if len(value) <= _LONG_ARRAY:
        return items
    return {"length": len(value), "first": items[:4]}

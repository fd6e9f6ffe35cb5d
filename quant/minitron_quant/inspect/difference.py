"""The difference between two GGUF files: metadata, types, and on request the weights' bytes."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from minitron_core.gguf import Gguf, in_layer, iterate_tensors, open_shards
from minitron_quant.inspect.description import describe, plain

_PIECE = 1 << 24


def compare(first: Path, second: Path, *, with_data: bool) -> dict[str, Any]:
    """What differs between two models; `with_data` reads and compares every tensor's bytes.

    `types` counts changes by role: a role is a tensor's name without its layer.
    """
    a, b = describe(first, with_tensors=True), describe(second, with_tensors=True)
    tensors = [{each["name"]: each for each in description["tensors"]} for description in (a, b)]
    both = [name for name in tensors[0] if name in tensors[1]]
    pairs = [(name, tensors[0][name], tensors[1][name]) for name in both]
    moves = Counter(
        (in_layer(name, "*"), one["type"], other["type"])
        for name, one, other in pairs
        if one["type"] != other["type"]
    )
    keys = ("files", "level", "bytes", "bits_per_weight")
    return {
        "models": [{key: description[key] for key in keys} for description in (a, b)],
        "metadata": _metadata(open_shards(first)[0], open_shards(second)[0]),
        "tensors": {
            "only_first": [name for name in tensors[0] if name not in tensors[1]],
            "only_second": [name for name in tensors[1] if name not in tensors[0]],
            "shapes": {
                n: [x["shape"], y["shape"]] for n, x, y in pairs if x["shape"] != y["shape"]
            },
            "types": [
                {"role": role, "first": old, "second": new, "tensors": count}
                for (role, old, new), count in moves.items()
            ],
            "data": _data(first, second) if with_data else None,
        },
    }


def same(difference: dict[str, Any]) -> bool:
    """Whether nothing that was compared differs."""
    tensors = {**difference["tensors"], "data": (difference["tensors"]["data"] or {}).get("differ")}
    return not any(difference["metadata"].values()) and not any(tensors.values())


def _metadata(first: Gguf, second: Gguf) -> dict[str, Any]:
    # whole values are compared; long arrays are only shown by their beginning
    a, b = first.metadata, second.metadata
    return {
        "only_first": {key: plain(a[key]) for key in a if key not in b},
        "only_second": {key: plain(b[key]) for key in b if key not in a},
        "changed": {
            key: [plain(a[key]), plain(b[key])] for key in a if key in b and a[key] != b[key]
        },
    }


def _data(first: Path, second: Path) -> dict[str, Any]:
    """Tensors of one type and shape whose bytes are equal, and the names of those that differ."""
    others = {info.name: (shard, info) for shard, info in iterate_tensors(open_shards(second))}
    equal, differ = 0, []
    for shard, info in iterate_tensors(open_shards(first)):
        other, there = others.get(info.name, (None, None))
        if other is None or there is None or (there.type, there.shape) != (info.type, info.shape):
            continue
        one, two = shard.data(info), other.data(there)
        if all(
            np.array_equal(one[start : start + _PIECE], two[start : start + _PIECE])
            for start in range(0, info.nbytes, _PIECE)
        ):
            equal += 1
        else:
            differ.append(info.name)
    return {"equal": equal, "differ": differ}

"""Model files before llama.cpp sees them: it aborts on some that are damaged, or no models."""

import math
from pathlib import Path
from typing import TypeGuard

from minitron_core.errors import Damaged, NotFound, Unsupported
from minitron_core.gguf import Gguf, open_gguf, open_shards, parse_shard_name

_IMATRIX = "imatrix"
_FAMILIES = ("llama", "nemotron")  # those that are converted here
_MOST_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp


def open_model_files(path: Path) -> list[Gguf]:
    """The checked shards of a model; Unsupported for a GGUF file that holds no model."""
    shards = open_shards(path)
    if shards[0].get("general.type") == _IMATRIX:
        raise Unsupported(
            f"{path.name} is an importance matrix, not a model", "pass it with --imatrix"
        )
    _check_numbers(shards[0])
    return shards


def _check_numbers(file: Gguf) -> None:
    """Damaged where llama.cpp would abort the process over a number, or compute without end."""
    family = file.get("general.architecture")
    if family not in _FAMILIES:
        return
    layers, epsilons = file.get(f"{family}.block_count"), [*map(file.get, _epsilons(family))]
    if not _is_count(layers) or layers > _MOST_LAYERS:
        raise Damaged(f"{file.path} is damaged: it gives {layers!r:.40} layers")
    for epsilon in epsilons:
        if epsilon is not None and not (isinstance(epsilon, float) and 0 <= epsilon < math.inf):
            raise Damaged(f"{file.path} is damaged: its norms have an epsilon of {epsilon!r:.40}")
    heads, hidden = (
        file.get(f"{family}.{key}") for key in ("attention.head_count", "embedding_length")
    )
    rotated = file.get(f"{family}.rope.dimension_count")
    if rotated is None or not _is_count(heads) or not _is_count(hidden):
        return  # what llama.cpp tells by itself
    size = file.get(f"{family}.attention.key_length", hidden // heads)
    if not _is_count(rotated) or rotated % 2 or not _is_count(size) or rotated > size:
        raise Damaged(
            f"{file.path} is damaged: it turns {rotated!r:.40} of {size!r:.40} numbers of a head"
        )


def _epsilons(family: str) -> list[str]:
    return [f"{family}.attention.layer_norm{kind}_epsilon" for kind in ("", "_rms")]


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_imatrix(path: Path) -> bool:
    """Whether a GGUF file is an importance matrix."""
    return bool(open_gguf(path).get("general.type") == _IMATRIX)


def models_in(folder: Path) -> list[Path]:
    """The models of a folder by name, the first shard for all; NotFound if there is none."""
    paths = [path for path in sorted(folder.glob("*.gguf")) if not is_imatrix(path)]
    shards = {path: parse_shard_name(path.name) for path in paths}
    firsts = [path for path, shard in shards.items() if shard is None or shard.number == 1]
    if not firsts:
        raise NotFound(f"there is no model in {folder}", "minitron quantize makes some")
    return firsts

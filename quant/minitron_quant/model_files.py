"""Model files before llama.cpp reads them: it aborts on some that are damaged, or hold no model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

from minitron_core.errors import Damaged, NotFound, Unsupported
from minitron_core.gguf import Gguf, TensorInfo, open_gguf, open_shards, parse_shard_name
from minitron_core.quoting import quoted

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
# tensors by name, each with its shard
Tensors = dict[str, tuple[Gguf, TensorInfo]]

# by general.type: what lies in folders beside models
_OTHERS = {
    "imatrix": "an importance matrix",
    "covariance": "a covariance",
    "output-hessian": "an output Hessian",
    "mmproj": "a multimodal projector",
    "adapter": "a LoRA adapter",
}
# what GPTQ keeps to choose codes again, larger than any level
_WORKING = ("covariance", "output-hessian")
_MAX_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp


def open_model_files(path: Path) -> list[Gguf]:
    """The checked shards of a model.

    Raises Unsupported for a GGUF file that holds no model, Damaged for one on which llama.cpp would
    abort the process, or compute without end.
    """
    shards = open_shards(path)
    other = _other_content(shards[0])
    if other:
        hint = "pass it with --imatrix" if "matrix" in other else "name the model beside it"
        raise Unsupported(f"{path.name} is {other}, not a model", hint)
    _check_numbers(shards[0])
    return shards


def tensors_of(shards: Sequence[Gguf]) -> Tensors:
    """The tensors of all shards by name."""
    return {info.name: (shard, info) for shard in shards for info in shard.tensors}


def _check_numbers(file: Gguf) -> None:
    """Check the numbers that every architecture has, by the keys that llama.cpp gives them."""
    architecture = file.get("general.architecture")
    if not isinstance(architecture, str):
        return  # llama.cpp says so itself

    def number(key: str) -> object:
        return file.get(f"{architecture}.{key}")

    layers = number("block_count")
    # where it is missing llama.cpp refuses the file itself
    if layers is not None and not (_is_count(layers) and layers <= _MAX_LAYERS):
        raise Damaged(f"{file.path} is damaged: block_count is {quoted(layers, 40)}")
    for key in ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"):
        epsilon = number(key)
        if epsilon is not None and not (isinstance(epsilon, float) and 0 <= epsilon < math.inf):
            raise Damaged(f"{file.path} is damaged: {key} is {quoted(epsilon, 40)}")
    rotated = number("rope.dimension_count")
    heads, hidden = number("attention.head_count"), number("embedding_length")
    if rotated is None or not _is_count(heads) or not _is_count(hidden):
        return  # no rotation, heads that differ by layer, or what llama.cpp refuses itself
    size = number("attention.key_length")
    size = hidden // heads if size is None else size
    if not _is_count(rotated) or rotated % 2 or not _is_count(size) or rotated > size:
        raise Damaged(
            f"{file.path} is damaged: rope.dimension_count {quoted(rotated, 40)} does not fit a "
            f"head of {quoted(size, 40)}"
        )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def other_content(path: Path) -> str:
    """What a GGUF file without a model holds, such as an adapter; empty for a model."""
    return _other_content(open_gguf(path))


def _other_content(file: Gguf) -> str:
    if file.get("general.architecture") == "clip":
        return _OTHERS["mmproj"]
    return _OTHERS.get(str(file.get("general.type")), "")


def published_in(folder: Path) -> list[Path]:
    """The GGUF files of a folder that belong on the Hub: all but what only GPTQ reads."""
    paths = sorted(folder.glob("*.gguf"))
    return [path for path in paths if open_gguf(path).get("general.type") not in _WORKING]


def models_in(folder: Path) -> list[Path]:
    """The models of a folder by name, sharded ones by their first shard; NotFound if none."""
    paths = [path for path in sorted(folder.glob("*.gguf")) if not other_content(path)]
    shards = {path: parse_shard_name(path.name) for path in paths}
    firsts = [path for path, shard in shards.items() if shard is None or shard.number == 1]
    if not firsts:
        raise NotFound(f"there is no model in {folder}", "minitron quantize makes some")
    return firsts

"""Model files before llama.cpp sees them: it aborts on some that are damaged, or no models."""

from pathlib import Path

from minitron_convert.gguf_file import SHARD_NAME, Gguf, open_gguf, open_shards
from minitron_engine.errors import NotFound, Unsupported

_IMATRIX = "imatrix"


def open_model_files(path: Path) -> list[Gguf]:
    """The checked shards of a model; Unsupported for a GGUF file that holds no model."""
    shards = open_shards(path)
    if shards[0].get("general.type") == _IMATRIX:
        raise Unsupported(
            f"{path.name} is an importance matrix, not a model", "pass it with --imatrix"
        )
    return shards


def is_imatrix(path: Path) -> bool:
    """Whether a GGUF file is an importance matrix."""
    return bool(open_gguf(path).get("general.type") == _IMATRIX)


def models_in(folder: Path) -> list[Path]:
    """The models of a folder by name, the first shard for all; NotFound if there is none."""
    paths = [path for path in sorted(folder.glob("*.gguf")) if not is_imatrix(path)]
    shards = {path: SHARD_NAME.fullmatch(path.name) for path in paths}
    firsts = [path for path, shard in shards.items() if shard is None or int(shard["number"]) == 1]
    if not firsts:
        raise NotFound(f"there is no model in {folder}", "minitron quantize makes some")
    return firsts

"""Model files before llama.cpp sees them: it aborts on some that are damaged, or no models."""

from pathlib import Path

from minitron_convert.gguf_file import Gguf, open_gguf, open_shards
from minitron_engine.errors import Unsupported


def open_model_files(path: Path) -> list[Gguf]:
    """The checked shards of a model; Unsupported for a GGUF file that holds no model."""
    if is_imatrix(path):
        raise Unsupported(
            f"{path.name} is an importance matrix, not a model", "pass it with --imatrix"
        )
    return open_shards(path)


def is_imatrix(path: Path) -> bool:
    """Whether a GGUF file is an importance matrix."""
    return bool(open_gguf(path).get("general.type") == "imatrix")

"""What an importance matrix was made from, so that one of another model is recognized."""

from collections.abc import Sequence
from pathlib import Path

from minitron_core.hashing import file_sha256, model_fingerprint
from minitron_quant.imatrix.matrix import Origin
from minitron_quant.model_files import open_model_files


def origin_of(model: Path, texts: Sequence[Path]) -> Origin:
    """The origin of a matrix made with these files."""
    hashes = tuple(file_sha256(text) for text in texts)
    return Origin(model_fingerprint(open_model_files(model)), hashes)

"""Models from the Hub, with the hashes of what came."""

from dataclasses import dataclass
from pathlib import Path

from minitron_convert.checkpoint.file_names import files_of
from minitron_convert.hub.models import parse_model
from minitron_core.errors import NotFound
from minitron_core.gguf import parse_shard_name
from minitron_core.hashing import file_sha256
from minitron_core.progress import Event, Progress, ignore


@dataclass(frozen=True)
class Pulled:
    """A model in the Hub's cache. path: its file or first shard, or the folder of a checkpoint.

    files: SHA-256 and bytes of each of its files, by path.
    """

    name: str
    path: Path
    checkpoint: bool
    files: dict[Path, tuple[str, int]]


def pull_model(name: str, progress: Progress = ignore) -> Pulled:
    """Download the GGUF model or the checkpoint that owner/name[:LEVEL] means, and hash it.

    NotFound, Denied (network, private or gated repository), OutOfResources.
    """
    model = parse_model(name)
    if model is None:
        raise NotFound(f"{name} is not the name of a model on the Hub", "write owner/name[:LEVEL]")
    checkpoint = model.level is None and model.needs_conversion()
    if checkpoint:
        path = model.repository.download(progress).folder
        paths = list(files_of(path))
    else:
        path = model.download(progress)
        shard = parse_shard_name(path.name)
        paths = [path.with_name(each) for each in shard.all()] if shard else [path]
    return Pulled(str(model), path, checkpoint, _hashed(paths, progress))


def _hashed(paths: list[Path], progress: Progress) -> dict[Path, tuple[str, int]]:
    sizes = {path: path.stat().st_size for path in paths}
    total, done, files = sum(sizes.values()), 0, {}
    for path, size in sizes.items():
        progress(Event("hash", done, total, "bytes", path.name))
        files[path] = (file_sha256(path), size)
        done += size
    return files

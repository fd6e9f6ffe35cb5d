"""Open a model: choose how many layers go to GPUs, then load it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitron_core.cpu_limits import available_memory
from minitron_core.errors import NotFound, OutOfResources
from minitron_core.gguf.shards import shard_paths
from minitron_engine.llama import devices
from minitron_engine.llama.model import LoadProgress, Model, load_model
from minitron_engine.llama.settings import ModelSettings, Offload


@contextmanager
def open_model(
    settings: ModelSettings,
    progress: LoadProgress | None = None,
    *,
    vocabulary_of: Model | None = None,
) -> Iterator[Model]:
    """Load a GGUF file (the first shard stands for all) and free it at the end of the block.

    vocabulary_of: an open model of the same architecture and vocabulary, which outlives this one
    and lends its vocabulary: building one is most of a small model's load.
    Raises NotFound, Usage for an impossible placement, and Damaged, Unsupported or OutOfResources
    with llama.cpp's own reason where it refuses the file.
    """
    devices.start()
    if not settings.path.is_file():
        raise NotFound(f"{settings.path} does not exist")
    gpus = devices.select_gpus(settings.placement)
    offload = Offload(placement=settings.placement)
    if gpus and settings.gpu_layers != 0 and not settings.vocab_only:
        from minitron_engine.memory.gpu_layers import choose_layers

        offload = choose_layers(settings, gpus)
    if settings.writable and not offload.layers:
        _check_memory(settings.path)
    with load_model(settings, offload, gpus, progress, vocabulary_of) as model:
        yield model


def _check_memory(path: Path) -> None:
    """OutOfResources where a model that is not mapped is larger than the free memory.

    Linux ends a process that takes more than its cgroup has, without a word.
    """
    shards, free = [*filter(Path.is_file, shard_paths(path))], available_memory()
    size = sum(shard.stat().st_size for shard in shards)
    if size > free:
        raise OutOfResources(
            f"{path.name} takes {size / 2**30:.1f} GiB of memory of its own here, and "
            f"{free / 2**30:.1f} GiB are free",
            "use a machine or a container with more memory",
        )

"""Load a model whose header was checked first."""

from collections.abc import Iterator
from contextlib import contextmanager

from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.model_files import open_model_files


@contextmanager
def load(settings: ModelSettings) -> Iterator[Model]:
    """A loaded model, freed at the end of the `with` block; a first shard stands for all.

    The header is read before llama.cpp sees the file, because llama.cpp aborts on some damaged
    files. Raises NotFound, Damaged, Unsupported, OutOfResources.
    """
    open_model_files(settings.path)
    with open_model(settings) as model:
        yield model

"""Opening a model for a command: its header is checked before llama.cpp sees the file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minitron_engine.devices import GpuLayers
from minitron_engine.model import Model, ModelSettings, open_model
from minitron_quant.models import open_model_files


@contextmanager
def open_checked(path: Path, gpu_layers: GpuLayers, n_ctx: int) -> Iterator[Model]:
    """A loaded model. llama.cpp aborts on some damaged files, so their headers are read first.

    n_ctx: the tokens whose KV cache must fit on a GPU beside the weights.
    """
    open_model_files(path)
    with open_model(ModelSettings(path, gpu_layers, n_ctx)) as model:
        yield model

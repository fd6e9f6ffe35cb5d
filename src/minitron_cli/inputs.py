"""Models of commands: found by name, and their headers checked before llama.cpp sees a file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli.output import Output
from minitron_engine.llama.context import ContextSettings
from minitron_engine.llama.devices import GpuLayers, missing_gpu
from minitron_engine.llama.model import Model, ModelSettings, open_model
from minitron_engine.memory.placement import EVERY_GPU, Placement
from minitron_quant.model_files import is_imatrix, open_model_files

if TYPE_CHECKING:
    from minitron_convert.hub.models import HubModel

# tokens of a context where none are asked for; fewer where the model was trained on fewer
DEFAULT_CONTEXT = 4096


def local_model(model: Path, out: Output) -> Path:
    """The file that MODEL means: itself, or owner/name[:LEVEL] on the Hub, downloaded."""
    named = on_the_hub(model)
    if named is None:
        return model
    with out.progress() as listener:
        return named.download(listener)


def local_models(models: Sequence[Path], out: Output) -> tuple[Path, ...]:
    """The files of several MODELs, but for the importance matrix that a shell's *.gguf brings."""
    paths = [local_model(model, out) for model in models]
    # where there is only one, whoever opens it says what it is
    chosen = [path for path in paths if len(paths) == 1 or not is_imatrix(path)] or paths
    for path in paths:
        if path not in chosen:
            out.note(f"{path.name} is left out: an importance matrix, not a model")
    return tuple(chosen)


@contextmanager
def model_header(model: Path) -> Iterator[Path]:
    """As local_model, where the header is all that is needed: weights on the Hub stay there."""
    named = on_the_hub(model)
    if named is None:
        yield model
    else:
        with named.headers() as path:
            yield path


def on_the_hub(model: Path) -> "HubModel | None":
    """The model on the Hub that MODEL names; None for what can only be a path."""
    if model.exists() or model.suffix == ".gguf":
        return None
    # the Hub's client is loaded only where it is needed
    from minitron_convert.hub.models import parse_model

    return parse_model(str(model))


def folder_for_results(model: Path) -> Path:
    """Beside MODEL; the current folder where it is a checkpoint or a name on the Hub."""
    return model.parent if model.is_file() or model.suffix == ".gguf" else Path()


def tell_missing_gpu(out: Output, wanted: GpuLayers = "auto") -> None:
    """One line where a GPU, or a build for it, is missing; nothing if the CPU was asked for."""
    told = missing_gpu() if wanted != 0 else ""
    if told:
        out.note(told)


def tell_full_gpu(out: Output, model: Model) -> None:
    """One line where there are GPUs, but without room for any layer."""
    if model.reason and not model.offloaded:
        out.note(f"nothing is offloaded, no layer fits: {model.reason}")


@contextmanager
def open_checked(
    path: Path,
    gpu_layers: GpuLayers,
    context: ContextSettings,
    placement: Placement = EVERY_GPU,
) -> Iterator[Model]:
    """A loaded model. llama.cpp aborts on some damaged files, so their headers are read first.

    context: what must fit on the GPUs beside the weights.
    """
    open_model_files(path)
    settings = ModelSettings(path, gpu_layers, placement=placement, context=context)
    with open_model(settings) as model:
        yield model

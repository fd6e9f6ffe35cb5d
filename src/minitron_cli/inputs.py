"""What commands read (models and checkpoints, on the disk or on the Hub) and may write."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from minitron_cli.output import Output
from minitron_core.errors import AlreadyExists, Denied, NotFound, Usage
from minitron_engine.llama.settings import (
    GpuLayers,
)

if TYPE_CHECKING:
    from minitron_convert.hub.models import HubModel
    from minitron_convert.hub.source import Source
    from minitron_core.progress import Progress
    from minitron_engine.llama.model import Model
    from minitron_engine.llama.settings import GpuLayers

# the Hub's client and llama.cpp are loaded only by the functions that need them


def local_model(model: Path, out: Output) -> Path:
    """The file that MODEL means: itself, or owner/name[:LEVEL] on the Hub, downloaded."""
    named = on_the_hub(model)
    if named is None:
        return model
    with out.progress() as listener:
        return named.download(listener)


def local_models(models: Sequence[Path], out: Output) -> tuple[Path, ...]:
    """The files of several MODELs, without matrices and adapters that a shell's *.gguf brings."""
    from minitron_quant.model_files import other_content

    paths = [local_model(model, out) for model in models]
    # a single file is refused with a reason where it is opened
    others = {path: other_content(path) for path in paths} if len(paths) > 1 else {}
    chosen = [path for path in paths if not others.get(path)] or paths
    for path in paths:
        if path not in chosen:
            out.note(f"{path.name} is left out: {others[path]}, not a model")
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


def on_the_hub(model: Path) -> HubModel | None:
    """The model on the Hub that MODEL names; None for what can only be a path."""
    if model.exists() or model.suffix == ".gguf":
        return None
    from minitron_convert.hub.models import parse_model

    return parse_model(str(model))


def folder_for_results(source: Path) -> Path:
    """Beside a model or a checkpoint; the current folder if that is not writable, or on the Hub."""
    here = source.exists() or source.suffix == ".gguf"
    return source.parent if here and os.access(source.parent, os.W_OK) else Path()


def note_missing_gpu(out: Output, wanted: GpuLayers = "auto") -> None:
    """A note where a GPU, or a build for it, is missing, if the layers are chosen by themselves."""
    from minitron_engine.llama.devices import missing_gpu

    reason = missing_gpu() if wanted == "auto" else ""
    if reason:
        out.note(reason)


def note_full_gpu(out: Output, model: Model) -> None:
    """A note where there are GPUs, but no layer fits."""
    if model.reason and not model.offloaded:
        out.note(f"nothing is offloaded, no layer fits: {model.reason}")


def note_long_context(out: Output, model: Model, n_ctx: int) -> None:
    """A note where a context that was asked for is longer than the model was trained on."""
    if n_ctx > model.n_ctx_train > 0:
        out.note(
            f"a context of {n_ctx} tokens is longer than the {model.n_ctx_train} that the model "
            "was trained on: what it writes beyond them may make no sense"
        )


@contextmanager
def open_checkpoint_source(
    text: str, revision: str | None, listener: Progress, *, headers_only: bool = False
) -> Iterator[Source]:
    """The folder of `text`, downloaded where it is owner/name[@revision] on the Hub.

    headers_only: for a plan; weights on the Hub stay there.
    """
    from minitron_convert.hub.source import Source

    folder = Path(text).expanduser()
    if folder.exists():
        if revision is not None:
            raise Usage(f"--revision is for the Hub, and {text} is a folder", "drop it")
        yield Source(folder)
        return
    from minitron_convert.hub.download import open_source
    from minitron_convert.hub.headers import open_headers

    if headers_only:
        with open_headers(text, revision) as source:
            yield source
    else:
        yield open_source(text, revision, listener)


@contextmanager
def planned_header(model: Path, out: Output) -> Iterator[Path]:
    """As model_header; that of a checkpoint, here or on the Hub, is its conversion's."""
    if not is_checkpoint(model):
        with model_header(model) as path:
            yield path
        return
    from minitron.level_conversion import header_alone
    from minitron_convert.convert import ConvertSettings, plan

    with (
        out.progress() as listener,
        open_checkpoint_source(str(model), None, listener, headers_only=True) as found,
    ):
        planned = plan(ConvertSettings(source=found.folder, name=found.name))
        for note in planned.notes:
            out.note(note)
        with header_alone(planned.files[0]) as header:
            yield header.path


def is_checkpoint(model: Path) -> bool:
    """Whether MODEL is a folder, or a repository on the Hub without GGUF files."""
    if model.exists():
        return model.is_dir()
    named = on_the_hub(model)
    return named is not None and named.needs_conversion()


def is_up_to_date(path: Path, key: str, force: bool) -> bool:
    """Whether an output was made from the inputs of a key (made_from.inputs_key).

    Errors: as refuse_existing, for one that was made from something else.
    """
    from minitron_core.made_from import is_made_from

    if not force and is_made_from([path], key):
        return True
    refuse_existing(path, force)
    return False


def refuse_folder(path: Path | None) -> None:
    """Usage for a folder where a command writes a file."""
    if path is not None and path.is_dir():
        raise Usage(f"{path} is a folder", "name the file to write")


def check_output(path: Path | None) -> None:
    """Stop before hours of work if a file could not be put where it belongs.

    Usage: it is a folder. NotFound, Denied: it would be in one that is missing, or not writable.
    """
    refuse_folder(path)
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir():
        raise NotFound(f"the folder {folder} does not exist", "create it first")
    if not os.access(folder, os.W_OK):
        raise Denied(f"the folder {folder} is not writable", "choose another place with -o")


def refuse_existing(path: Path, force: bool) -> None:
    """As check_output; AlreadyExists for a file that is there, unless it may be replaced."""
    if path.is_file() and not force:
        raise AlreadyExists(f"{path} exists", "--force replaces it; -o names another file")
    check_output(path)

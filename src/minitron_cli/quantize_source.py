"""What `quantize` reads: a GGUF file, or a checkpoint that is converted on the way."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minitron_cli.inputs import (
    is_checkpoint,
    local_model,
    on_the_hub,
    planned_header,
)
from minitron_cli.output import Output
from minitron_core.errors import Usage

if TYPE_CHECKING:
    from pathlib import Path

    from minitron.checkpoint_levels import Calibration, CheckpointModel
    from minitron_quant.quantize.importance import PlainCodes
    from minitron_quant.quantize.prepare import ConvertedSource, QuantizeSettings


@dataclass(frozen=True)
class SourceRequest:
    """What to quantize, and what has to be made of it first.

    calibration: collects the importance matrix. keep_full: write the full-precision file too.
    runs: the model is run for its codes, and so needs to be a file. solves: for a size.
    """

    settings: QuantizeSettings
    calibration: Calibration | None
    keep_full: bool
    runs: bool
    solves: bool


@dataclass(frozen=True)
class QuantizeSource:
    """The settings with what was made.

    expected: stands for a matrix that a plan does not make. calibrating: seconds that it takes.
    """

    settings: QuantizeSettings
    converted: ConvertedSource | None = None
    expected: PlainCodes | None = None
    calibrating: float = 0.0


@contextmanager
def planned_source(request: SourceRequest, out: Output) -> Iterator[QuantizeSource]:
    """For a plan: the header alone, and nothing is written. Errors: as the models' readers."""
    from minitron_quant.model_files import open_model_files
    from minitron_quant.quantize.importance import expected_importance
    from minitron_quant.quantize.prepare import model_name

    settings = request.settings
    with planned_header(settings.source, out) as path:
        planned, calibration = replace(settings, source=path), request.calibration
        if calibration is None:
            yield QuantizeSource(planned)
            return
        out.note("the importance matrix is collected when files are made")
        shards, text = open_model_files(path), calibration.texts[0]
        expected = expected_importance(shards, f"{model_name(path)}.imatrix.gguf", text)
        seconds = 0.0 if _is_calibrated(request) else calibration.forecast(shards)
        yield QuantizeSource(planned, expected=expected, calibrating=seconds)


@contextmanager
def source_of(request: SourceRequest, out: Output) -> Iterator[QuantizeSource]:
    """The model or checkpoint, downloaded and calibrated as requested.

    Usage: a checkpoint for a size; otherwise as the converter and imatrix.
    """
    settings = request.settings
    if not is_checkpoint(settings.source):
        if request.keep_full:
            raise Usage("--keep-f16 is for checkpoints, and the model is a GGUF file", "drop it")
        path = local_model(settings.source, out)
        yield QuantizeSource(_calibrated(request, replace(settings, source=path), out))
        return
    if request.solves:
        raise Usage(
            f"{settings.source} is a checkpoint; sizes need the sensitivity of a GGUF file",
            f"convert it first: minitron convert {settings.source}",
        )
    calibrated = settings.imatrix or request.calibration or request.runs
    if on_the_hub(settings.source) and not calibrated:
        _refuse_early(request)
    from minitron.checkpoint_levels import open_checkpoint_model

    with ExitStack() as stack:
        with out.progress() as listener:
            model = stack.enter_context(open_checkpoint_model(settings.source, listener))
        for note in model.planned.notes:
            out.note(note)
        if request.runs:
            yield QuantizeSource(stack.enter_context(_as_file(request, model, out)))
        else:
            yield QuantizeSource(_from_checkpoint(request, model, out), model.converted)


def _refuse_early(request: SourceRequest) -> None:
    """Stop before gigabytes are downloaded, if a level needs a matrix."""
    from minitron_quant.quantize.prepare import prepare

    with planned_header(request.settings.source, Output(quiet=True)) as path:
        prepare(replace(request.settings, source=path))


def _is_calibrated(request: SourceRequest) -> bool:
    """Whether the matrix of a GGUF file is there already."""
    from minitron_quant.model_files import open_model_files

    source, calibration = request.settings.source, request.calibration
    if calibration is None or not source.is_file():
        return False
    key = calibration.key([shard.path for shard in open_model_files(source)])
    return calibration.is_there(_matrix_of(request.settings), key, replaces=True)


def _matrix_of(settings: QuantizeSettings) -> Path:
    from minitron_quant.quantize.prepare import folder_of, model_name

    return folder_of(settings) / f"{model_name(settings.source)}.imatrix.gguf"


def _calibrated(
    request: SourceRequest, settings: QuantizeSettings, out: Output
) -> QuantizeSettings:
    if request.calibration is None:
        return settings
    output = _matrix_of(settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    with out.progress() as listener:
        matrix = request.calibration.collect(
            settings.source, output, replaces=settings.replace == "always", progress=listener
        )
    return replace(settings, imatrix=matrix)


@contextmanager
def _as_file(
    request: SourceRequest, model: CheckpointModel, out: Output
) -> Iterator[QuantizeSettings]:
    """With the full-precision file as the source, which stays only if it is to be kept.

    After Ctrl-C it stays, too, hidden: the same command continues with it.
    """
    from minitron_quant.quantize.prepare import folder_of

    settings = replace(request.settings, source=model.path)
    folder = folder_of(settings)
    hidden = None if request.keep_full else folder / f".{model.name}.full"
    model.check_disk(settings, keeps_full=True, runs=True)
    try:
        with out.progress() as listener:
            replaces = hidden is not None or settings.replace == "always"
            full = model.write_full(hidden or folder, replaces=replaces, progress=listener)
        yield replace(settings, source=full)
    except KeyboardInterrupt:
        hidden = None
        raise
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)


def _from_checkpoint(
    request: SourceRequest, model: CheckpointModel, out: Output
) -> QuantizeSettings:
    from minitron_quant.quantize.prepare import folder_of

    settings = replace(request.settings, source=model.path)
    folder, replaces = folder_of(settings), settings.replace == "always"
    model.check_disk(settings, keeps_full=request.keep_full, runs=request.calibration is not None)
    with out.progress() as listener:
        full = None
        if request.keep_full:
            full = model.write_full(folder, replaces=replaces, progress=listener)
        if request.calibration is None:
            return settings
        matrix = model.calibrate(
            request.calibration, folder, full=full, replaces=replaces, progress=listener
        )
    return replace(settings, imatrix=matrix)

"""minitron quantize: one file for every level asked for, from one read of the source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minitron_cli.options.calibration import CalibrationOptions
from minitron_cli.options.completion import complete_level
from minitron_cli.options.generation import DeviceOptions
from minitron_cli.options.parameters import (
    ConsoleOptions,
    GpuLayers,
    ModelOrCheckpoint,
    Threads,
    gpu_layers,
)
from minitron_cli.options.quantize import (
    LevelOptions,
    MixOptions,
    OutputOptions,
    TensorOptions,
    quantize_settings,
)
from minitron_core.errors import Unsupported, Usage
from minitron_quant.levels import level_help

if TYPE_CHECKING:
    from minitron_cli.output import Output
    from minitron_cli.quantize_source import QuantizeSource
    from minitron_quant.gptq.estimate import Method
    from minitron_quant.gptq.held_out import GptqMethod
    from minitron_quant.gptq.sequential_levels import SequentialSettings
    from minitron_quant.mixed_precision.build_mix import MixSettings
    from minitron_quant.quantize.prepare import QuantizeJob, QuantizeSettings

EXAMPLES = """minitron quantize nano-llama-F16.gguf Q4_K_M
minitron quantize nano-llama-F16.gguf all --imatrix nano-llama.imatrix.gguf -d out
minitron quantize examples/nano-llama Q4_K_M IQ2_M -f examples/calibration.txt -d out
minitron quantize model-F16.gguf IQ2_M Q4_K_M --imatrix m.gguf --tensor-type attn_v=q8_0
minitron quantize model-F16.gguf all --imatrix m.gguf --dry-run
minitron quantize nvidia/Minitron-4B-Base Q4_K_M Q8_0 --dry-run
minitron quantize model-F16.gguf --size 1.5G --held-out held-out.txt
minitron quantize model-F16.gguf --like Q3_K_M --types=-iq1_s,-iq1_m --no-verify
minitron quantize model-F16.gguf --curve
minitron quantize model-F16.gguf Q4_K_M --gptq --text calibration.txt --held-out other.txt"""


def quantize(
    model: ModelOrCheckpoint,
    made_with: LevelOptions,
    mix: MixOptions,
    gptq: CalibrationOptions,
    tensors: TensorOptions,
    target: OutputOptions,
    levels: Annotated[
        list[str] | None,
        typer.Argument(metavar="LEVEL...", autocompletion=complete_level, help=level_help()),
    ] = None,
    threads: Threads = None,
    layers: GpuLayers = "auto",
    *,
    spread: DeviceOptions,
    console: ConsoleOptions,
) -> None:
    """Quantize a model to one or many levels; run it again to finish what is missing.

    MODEL may be a checkpoint: levels are made straight from it, those that need a matrix after
    calibration on -f TEXT.
    """
    from minitron_cli.quantize_source import SourceRequest, planned_source, source_of

    out = console.output()
    gptq.check(made_with.imatrix)
    settings = quantize_settings(model, levels or (), made_with, tensors, target, threads)
    solved = mix.requested(levels or ())
    if solved:
        target.refuse_dry_run()
    if solved or gptq.text or mix.held_out:
        device, placement = gpu_layers(layers, out), spread.placement(out)
        settings = replace(settings, gpu_layers=device, placement=placement)
    elif spread.given:
        raise Usage("no model runs here, so that it needs no device", "-f TEXT runs it; or drop it")
    calibration = gptq.calibration(settings)
    runs = gptq.gptq is not None
    request = SourceRequest(settings, calibration, target.keep_f16, runs=runs, solves=solved)
    with planned_source(request, out) if target.dry_run else source_of(request, out) as source:
        settings = source.settings
        if solved:
            _make_mix(out, _with_gptq(out, mix.settings(settings), gptq), curve=mix.curve)
        elif target.dry_run:
            _show_plan(out, source, gptq)
        elif gptq.gptq and mix.held_out:
            _make_verified(out, settings, _method(out, settings, gptq), mix)
        else:
            _make_levels(out, _job(out, source, gptq))


def _covariance(out: Output, settings: QuantizeSettings, gptq: CalibrationOptions) -> Path | None:
    """The covariance that --gptq needs: the one given, or collected on its text."""
    if not gptq.gptq or gptq.covariance is not None:
        return gptq.covariance
    from minitron.quantization import covariance
    from minitron_quant.chunking import ChunkSettings
    from minitron_quant.covariance.collect import BLOCK, FULL, CovarianceSettings
    from minitron_quant.quantize.prepare import folder_of, model_name

    full = gptq.effort == "high"
    name = f"{model_name(settings.source)}.covariance{'-full' if full else ''}.gguf"
    path = folder_of(settings) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = ChunkSettings(limit=gptq.calibration_chunks, threads=settings.threads)
    collecting = CovarianceSettings(tuple(gptq.text or ()), chunks, FULL if full else BLOCK)
    with out.progress() as listener:
        return covariance(
            settings.source,
            path,
            collecting,
            gpu_layers=settings.gpu_layers,
            placement=settings.placement,
            progress=listener,
        )


def _job(out: Output, source: QuantizeSource, gptq: CalibrationOptions) -> QuantizeJob:
    from minitron_quant.quantize.prepare import prepare

    if gptq.gptq:
        return _method(out, source.settings, gptq).job(source.settings)
    return prepare(source.settings, source.expected, source.converted)


def _method(out: Output, settings: QuantizeSettings, gptq: CalibrationOptions) -> GptqMethod:
    """Sequential GPTQ where it is wanted and the model allows it, or else independent."""
    sequential = _sequential(out, settings, gptq)
    if sequential is not None:
        from minitron_quant.gptq.sequential_levels import SequentialLevels

        return SequentialLevels(settings, sequential)
    from minitron_quant.gptq.encoder import GptqEncoder
    from minitron_quant.model_files import open_model_files

    covariance = _covariance(out, settings, gptq)
    assert covariance is not None  # --gptq was asked for
    return GptqEncoder(covariance, open_model_files(settings.source))


def _with_gptq(out: Output, settings: MixSettings, gptq: CalibrationOptions) -> MixSettings:
    """A mix with what GPTQ needs, where it is wanted."""
    if not gptq.gptq:
        return settings
    sequential = _sequential(out, settings.quantize, gptq)
    covariance = _covariance(out, settings.quantize, gptq)
    return replace(settings, covariance=covariance, sequential=sequential)


def _sequential(
    out: Output, settings: QuantizeSettings, gptq: CalibrationOptions
) -> SequentialSettings | None:
    """What sequential GPTQ calibrates on; None where codes are independent."""
    if not _is_sequential(out, settings, gptq):
        return None
    from minitron_quant.chunking import ChunkSettings
    from minitron_quant.covariance.collect import BLOCK, FULL
    from minitron_quant.gptq.sequential_levels import SequentialSettings

    if settings.errors is not None:
        raise Usage("--errors measures codes that all levels share: add --gptq independent")
    block = FULL if gptq.effort == "high" else BLOCK
    chunks = ChunkSettings(limit=gptq.calibration_chunks, threads=settings.threads)
    two_sided = gptq.gptq == "two-sided"
    return SequentialSettings(tuple(gptq.text or ()), chunks, block, two_sided=two_sided)


def _is_sequential(out: Output, settings: QuantizeSettings, gptq: CalibrationOptions) -> bool:
    """Whether layers run one by one; says why not where it was left open."""
    from minitron_quant.model_files import open_model_files
    from minitron_quant.streaming.layer_file import reason_not_streamed

    if gptq.gptq == "independent" or gptq.covariance is not None:
        return False
    reason = reason_not_streamed(open_model_files(settings.source))
    if reason and gptq.gptq in ("sequential", "two-sided"):
        raise Unsupported(reason, "--gptq independent takes every model")
    if reason:
        out.note(f"{reason}: GPTQ takes each matrix by itself")
    return not reason


def _show_plan(out: Output, source: QuantizeSource, gptq: CalibrationOptions) -> None:
    from minitron_cli.views.quantize import show_plan
    from minitron_quant.gptq.estimate import planned_gptq
    from minitron_quant.model_files import open_model_files
    from minitron_quant.quantize.prepare import prepare
    from minitron_quant.quantize.summary import summarize

    settings = source.settings
    if gptq.gptq and gptq.text:
        sequential = _is_sequential(out, settings, gptq)
        if not sequential:
            out.note("the covariance is collected when files are made")
        texts = [text.name for text in gptq.text]
        method: Method = "sequential" if sequential else "independent"
        if gptq.gptq == "two-sided":
            _method(out, settings, gptq)  # says what is missing
            method = "two-sided"
        job = prepare(settings, planned_gptq(method, texts, open_model_files(settings.source)))
    else:
        job = _job(out, source, gptq)
    _show_notes(out, job)
    show_plan(out, summarize(job))


def _make_mix(out: Output, settings: MixSettings, *, curve: bool) -> None:
    from minitron.quantization import build_mix
    from minitron_cli.views.mix import CURVE_POINTS, show_curve, show_mix
    from minitron_quant.levels import LEVELS
    from minitron_quant.mixed_precision.build_mix import MixBuilder

    if curve:
        solver = MixBuilder(settings).solver
        gptq = "independent" if settings.covariance else None
        show_curve(out, solver.curve(CURVE_POINTS), solver.presets(LEVELS), gptq)
        return
    with out.progress() as listener:
        made = build_mix(settings, listener)
    show_mix(out, made)


def _make_verified(
    out: Output, settings: QuantizeSettings, method: GptqMethod, mix: MixOptions
) -> None:
    from minitron_cli.views.quantize import show_verified
    from minitron_quant.gptq.held_out import quantize_verified

    _show_notes(out, method.job(settings))
    with out.progress() as listener:
        made = quantize_verified(settings, method, mix.verification(settings), listener)
    show_verified(out, made)


def _make_levels(out: Output, job: QuantizeJob) -> None:
    from minitron_cli.views.quantize import level_line, show_levels
    from minitron_core.progress import Event
    from minitron_quant.quantize.run import run

    _show_notes(out, job)
    results = []
    with out.progress() as listener:
        for result in run(job, listener):
            results.append(result)
            if not result.kept:
                listener(Event("quantize", finished=level_line(result)))
    if job.settings.errors is not None and all(result.kept for result in results):
        out.note("nothing was encoded, so no errors were measured; --force encodes again")
    show_levels(out, results)


def _show_notes(out: Output, job: QuantizeJob) -> None:
    for note in job.notes:
        out.note(note)

"""minitron quantize: one file for every level asked for, from one read of the source."""

from __future__ import annotations

from dataclasses import replace
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
from minitron_core.errors import Usage
from minitron_quant.levels import level_help

if TYPE_CHECKING:
    from minitron_cli.output import Output
    from minitron_cli.quantize_source import QuantizeSource
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
            _make_mix(out, settings, mix, gptq)
        elif target.dry_run:
            _show_plan(out, source, gptq)
        elif gptq.gptq and mix.held_out:
            _make_verified(out, settings, mix, gptq)
        else:
            _make_levels(out, _job(out, source, gptq))


def _job(out: Output, source: QuantizeSource, gptq: CalibrationOptions) -> QuantizeJob:
    if not gptq.gptq:  # which takes long to load
        from minitron_quant.quantize.prepare import prepare

        return prepare(source.settings, source.expected, source.converted)
    from minitron_cli.quantize_gptq import gptq_method

    return gptq_method(out, source.settings, gptq).job(source.settings)


def _show_plan(out: Output, source: QuantizeSource, gptq: CalibrationOptions) -> None:
    from minitron_cli.views.quantize import show_plan
    from minitron_quant.quantize.summary import summarize

    if not gptq.gptq:
        job = _job(out, source, gptq)
        _show_notes(out, job)
        show_plan(out, summarize(job, source.calibrating))
        return
    from minitron_cli.quantize_gptq import planned_gptq_job

    job, takes = planned_gptq_job(out, source.settings, gptq)
    _show_notes(out, job)
    out.note(str(takes))
    show_plan(out, summarize(job, takes.seconds) | {"gptq": takes.document()})


def _make_mix(
    out: Output, quantize_settings: QuantizeSettings, mix: MixOptions, gptq: CalibrationOptions
) -> None:
    from minitron.mixed_precision import build_mix
    from minitron_cli.quantize_gptq import with_gptq
    from minitron_cli.views.mix import CURVE_POINTS, show_curve, show_mix
    from minitron_quant.levels import LEVELS
    from minitron_quant.mixed_precision.build_mix import MixBuilder

    settings = with_gptq(out, mix.settings(quantize_settings), gptq)
    if mix.curve:
        solver = MixBuilder(settings).solver
        codes = "independent" if settings.covariance else None
        show_curve(out, solver.curve(CURVE_POINTS), solver.presets(LEVELS), codes)
        return
    with out.progress() as listener:
        made = build_mix(settings, listener)
    show_mix(out, made)


def _make_verified(
    out: Output, settings: QuantizeSettings, mix: MixOptions, gptq: CalibrationOptions
) -> None:
    from minitron_cli.quantize_gptq import gptq_method
    from minitron_cli.views.quantize import show_verified
    from minitron_quant.gptq.held_out import quantize_verified

    method = gptq_method(out, settings, gptq)
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

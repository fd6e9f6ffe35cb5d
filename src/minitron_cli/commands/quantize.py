"""minitron quantize: one file for every level asked for, from one read of the source."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from minitron_cli.options.completion import complete_level, level_names
from minitron_cli.options.parameters import ConsoleOptions, ModelPath, Threads
from minitron_cli.options.quantize import (
    GptqOptions,
    LevelOptions,
    MixOptions,
    OutputOptions,
    TensorOptions,
    quantize_settings,
)

if TYPE_CHECKING:
    from minitron_cli.output import Output
    from minitron_quant.mixed_precision.build_mix import SizeSettings
    from minitron_quant.quantize.prepare import QuantizeSettings

EXAMPLES = """minitron quantize nano-llama-F16.gguf Q4_K_M
minitron quantize nano-llama-F16.gguf all --imatrix nano-llama.imatrix.gguf -d out
minitron quantize model-F16.gguf IQ2_M Q4_K_M --imatrix m.gguf --tensor-type attn_v=q8_0
minitron quantize model-F16.gguf all --imatrix m.gguf --dry-run
minitron quantize nvidia/Minitron-4B-Base Q4_K_M Q8_0 --dry-run
minitron quantize model-F16.gguf --size 1.5G --held-out held-out.txt
minitron quantize model-F16.gguf --like Q3_K_M --types=-iq1_s,-iq1_m --no-verify
minitron quantize model-F16.gguf --curve
minitron quantize model-F16.gguf Q4_K_M --gptq --text calibration.txt --held-out other.txt"""


def quantize(
    model: ModelPath,
    made_with: LevelOptions,
    mix: MixOptions,
    gptq: GptqOptions,
    tensors: TensorOptions,
    target: OutputOptions,
    levels: Annotated[
        list[str] | None,
        typer.Argument(metavar="LEVEL...", autocompletion=complete_level, help=level_names()),
    ] = None,
    threads: Threads = None,
    *,
    console: ConsoleOptions,
) -> None:
    """Quantize a model to one or many levels; run it again to finish what is missing."""
    from minitron_cli.inputs import quantize_source

    out = console.output()
    gptq.check()
    settings = quantize_settings(model, levels or (), made_with, tensors, target, threads)
    solved = mix.requested(levels or ())
    if solved:
        target.refuse_dry_run()
    with quantize_source(model, out, plan_only=target.dry_run) as source:
        settings = replace(settings, source=source)
        settings = _with_covariance(out, settings, gptq, plan_only=target.dry_run)
        if solved:
            _make_mix(out, mix.settings(settings), curve=mix.curve)
        elif gptq.gptq and mix.held_out and not target.dry_run:
            _make_verified(out, settings, mix)
        else:
            _make_levels(out, settings, plan_only=target.dry_run)


def _with_covariance(
    out: Output, settings: QuantizeSettings, gptq: GptqOptions, *, plan_only: bool
) -> QuantizeSettings:
    """The settings with the covariance that --gptq needs, collected on its text if not given.

    plan_only: nothing is collected.
    """
    if not gptq.gptq:
        return settings
    if gptq.covariance is not None:
        return replace(settings, covariance=gptq.covariance)
    texts = tuple(gptq.text or ())
    if plan_only:
        out.note("the covariance is collected when files are made")
        return replace(settings, uncollected=texts)
    from minitron_cli.inputs import open_checked
    from minitron_quant.chunking import ChunkSettings
    from minitron_quant.covariance.collect import (
        BLOCK,
        FULL,
        CovarianceSettings,
        collect_covariance,
    )
    from minitron_quant.quantize.prepare import folder_of, model_name

    chunks = ChunkSettings(threads=settings.threads)
    full = gptq.effort == "high"
    name = f"{model_name(settings.source)}.covariance{'-full' if full else ''}.gguf"
    path = folder_of(settings) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    collecting = CovarianceSettings(texts, chunks, FULL if full else BLOCK)
    with (
        out.progress() as listener,
        open_checked(settings.source, "auto", chunks.context()) as model,
    ):
        collect_covariance(model, collecting, path, listener)
    return replace(settings, covariance=path)


def _make_mix(out: Output, settings: SizeSettings, *, curve: bool) -> None:
    from minitron_cli.views.mix import CURVE_POINTS, show_curve, show_mix
    from minitron_quant.levels import LEVELS
    from minitron_quant.mixed_precision.build_mix import Maker

    if curve:
        dial = Maker(settings).dial
        show_curve(out, dial.curve(CURVE_POINTS), dial.presets(LEVELS))
        return
    with out.progress() as listener:
        made = Maker(settings, listener).make()
    show_mix(out, made)


def _make_verified(out: Output, settings: QuantizeSettings, mix: MixOptions) -> None:
    from minitron_cli.views.quantize import show_verified
    from minitron_quant.gptq.held_out import make_proved
    from minitron_quant.quantize.prepare import prepare

    for note in prepare(settings).notes:
        out.note(note)
    with out.progress() as listener:
        made = make_proved(settings, mix.verification(settings), listener)
    show_verified(out, made)


def _make_levels(out: Output, settings: QuantizeSettings, *, plan_only: bool) -> None:
    from minitron_cli.views.quantize import show_level, show_levels, show_plan
    from minitron_quant.quantize.prepare import prepare
    from minitron_quant.quantize.run import run
    from minitron_quant.quantize.summary import summarize

    batch = prepare(settings)
    for note in batch.notes:
        out.note(note)
    if plan_only:
        show_plan(out, summarize(batch))
        return
    with out.progress() as listener:
        results = run(batch, listener, lambda result: show_level(out, result))
    if settings.errors is not None and all(result.kept for result in results):
        out.note("nothing was encoded, so no errors were measured; --force encodes again")
    show_levels(out, results)

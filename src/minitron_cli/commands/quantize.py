"""minitron quantize: one file for every level asked for, from one read of the source."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from minitron_cli.options.completion import complete_level
from minitron_cli.options.parameters import Force, Json, ModelPath, Quiet, Threads, Verbose
from minitron_quant.levels import level_help

EXAMPLES = """minitron quantize nano-llama-F16.gguf Q4_K_M
minitron quantize nano-llama-F16.gguf all --imatrix nano-llama.imatrix.gguf -d out
minitron quantize model-F16.gguf IQ2_M Q4_K_M --imatrix m.gguf --tensor-type attn_v=q8_0
minitron quantize model-F16.gguf all --imatrix m.gguf --dry-run
minitron quantize nvidia/Minitron-4B-Base Q4_K_M Q8_0 --dry-run
minitron quantize model-F16.gguf --size 1.5G --held-out held-out.txt
minitron quantize model-F16.gguf --like Q3_K_M --types=-iq1_s,-iq1_m --no-verify
minitron quantize model-F16.gguf --curve
minitron quantize model-F16.gguf Q4_K_M IQ2_M --feedback -f calibration.txt --held-out other.txt"""


def quantize(
    model: ModelPath,
    levels: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LEVEL...",
            autocompletion=complete_level,
            help=level_help(),
        ),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("-d", "--directory", help="Where {Model}-{LEVEL}.gguf go.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file of a single level.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="An importance matrix, as minitron imatrix makes it.")
    ] = None,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all, no mix.")] = False,
    tensor_type: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=TYPE", help="Type of matching tensors.")
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of output.weight.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Type of token_embd.weight.")
    ] = None,
    leave_output_tensor: Annotated[
        bool, typer.Option("--leave-output-tensor", help="Do not quantize output.weight.")
    ] = False,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept a source that is quantized.")
    ] = False,
    include_weights: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Use the imatrix only for these.")
    ] = None,
    exclude_weights: Annotated[
        list[str] | None, typer.Option(metavar="PART", help="Not for these.")
    ] = None,
    override_kv: Annotated[
        list[str] | None, typer.Option(metavar="KEY=TYPE:VALUE", help="Set a metadata key.")
    ] = None,
    keep_split: Annotated[
        bool, typer.Option("--keep-split", help="As many shards as the source has.")
    ] = False,
    errors: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Write how much each encoding hurts.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="1.5G", help="The best mix of types in so many bytes.")
    ] = None,
    bpw: Annotated[
        float | None, typer.Option(min=0, help="The best mix with so many bits per weight.")
    ] = None,
    max_kld: Annotated[
        float | None, typer.Option(min=0, help="The smallest mix that diverges by so much.")
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="The best mix as large as this level.")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Only show size against predicted divergence.")
    ] = False,
    sensitivity: Annotated[
        Path | None, typer.Option(help="As minitron sensitivity makes it; found beside MODEL.")
    ] = None,
    types: Annotated[
        str | None, typer.Option(metavar="T,...", help="Types to mix, or not to: =-iq1_s,-iq1_m.")
    ] = None,
    floor: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=TYPE", help="No fewer bits than TYPE has.")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(help="A text to prove the mix on; not the calibration's.")
    ] = None,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="At most this many chunks of it.")
    ] = None,
    no_verify: Annotated[
        bool, typer.Option("--no-verify", help="Do not measure what was made.")
    ] = False,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="Codes that pay back the errors of others.")
    ] = False,
    texts: Annotated[
        list[Path] | None, typer.Option("-f", "--file", help="--feedback: a calibration text.")
    ] = None,
    covariance: Annotated[
        Path | None, typer.Option(help="--feedback: a covariance that was collected before.")
    ] = None,
    effort: Annotated[
        Literal["normal", "high"] | None,
        typer.Option(help="--feedback: high keeps the covariance of all columns, not of blocks."),
    ] = None,
    threads: Threads = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the plan.")] = False,
    force: Force = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a model to one or many levels; run it again to finish what is missing."""
    from minitron_cli.inputs import folder_for_results
    from minitron_cli.options.dial import DialOptions
    from minitron_cli.output import Output
    from minitron_cli.quantizing.feedback import (
        FeedbackOptions,
        covariance_of,
        planned_refiner,
        show_proved,
    )
    from minitron_cli.quantizing.planning import quantize_source
    from minitron_quant.levels import parse_levels
    from minitron_quant.quantize.options import (
        QuantizeOptions,
        parse_override,
        parse_tensor_type,
        type_named,
    )
    from minitron_quant.quantize.prepare import QuantizeSettings, prepare
    from minitron_quant.quantize.run import run

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    correcting = FeedbackOptions(feedback, tuple(texts or ()), covariance, effort)
    correcting.check()
    options = QuantizeOptions(
        pure=pure,
        tensor_types=tuple(map(parse_tensor_type, tensor_type or ())),
        output_type=type_named(output_tensor_type) if output_tensor_type else None,
        embedding_type=type_named(token_embedding_type) if token_embedding_type else None,
        leave_output=leave_output_tensor,
        allow_requantize=allow_requantize,
        keep_split=keep_split,
        overrides=tuple(map(parse_override, override_kv or ())),
    )
    settings = QuantizeSettings(
        source=model,
        levels=tuple(parse_levels(levels or ())),
        directory=directory or folder_for_results(model),
        output=output,
        imatrix=imatrix,
        include=tuple(include_weights or ()),
        exclude=tuple(exclude_weights or ()),
        options=options,
        errors=errors,
        threads=threads,
        replace="always" if force else "never",
    )
    dial = DialOptions(
        size,
        bpw,
        max_kld,
        like,
        curve,
        sensitivity,
        types,
        tuple(floor or ()),
        held_out,
        chunks,
        no_verify,
    )
    if dial.asked(levels or ()):
        from minitron_cli.quantizing.dialing import build_for_size

        with quantize_source(model, out, plan_only=False) as source:
            settings = replace(settings, source=source)
            build_for_size(out, settings, dial, covariance_of(settings, correcting, out))
        return
    with quantize_source(model, out, plan_only=dry_run) as source:
        settings = replace(settings, source=source)
        refiner: Any = None
        if dry_run and correcting.texts:
            out.note("the covariance is collected when files are made")
            refiner = planned_refiner(settings, correcting)
        elif correcting.asked:
            from minitron_quant.gptq.encoder import GptqEncoder
            from minitron_quant.model_files import open_model_files

            path = covariance_of(settings, correcting, out)
            assert path is not None
            refiner = GptqEncoder(path, open_model_files(source))
        job = prepare(settings, refiner)
        for note in job.notes:
            out.note(note)
        if dry_run:
            _show_plan(out, job)
            return
        if correcting.asked and held_out is not None:
            show_proved(out, settings, refiner, dial)
            return
        results = []
        with out.progress() as listener:
            for result in run(job, listener):
                results.append(result)
                if not result.kept:
                    _show_level(out, result)
    if errors is not None and all(result.kept for result in results):
        out.note("nothing was encoded, so no errors were measured; --force encodes anew")
    _show_results(out, results)


def _show_level(out: Any, result: Any) -> None:
    from minitron_cli.units import show_size, show_time

    out.detail(
        f"{result.level}: {show_size(result.bytes)}, {result.bits_per_weight:.2f} bits per weight, "
        f"{show_time(result.seconds)}"
    )


def _show_results(out: Any, results: list[Any]) -> None:
    from minitron_cli.units import show_mib

    if out.as_json:
        out.document({"levels": [_describe(result) for result in results]})
        return
    kept = sum(result.kept for result in results)
    if kept:
        out.note(f"{kept} of {len(results)} files were there already and up to date")
    rows = [
        [r.level, show_mib(r.bytes / 2**20), f"{r.bits_per_weight:.2f}", str(r.path)]
        for r in results
    ]
    out.table(["Level", "MiB", "Bits/weight", "File"], rows)


def _describe(result: Any) -> dict[str, Any]:
    return {
        "level": result.level,
        "path": str(result.path),
        "bytes": result.bytes,
        "bpw": result.bits_per_weight,
        "seconds": result.seconds,
        "sha256": result.sha256,
        "types": result.types,
        "kept": result.kept,
    }


def _show_plan(out: Any, batch: Any) -> None:
    from minitron_cli.units import show_mib, show_size, show_time
    from minitron_quant.quantize.summary import summarize

    summary = summarize(batch)
    if out.as_json:
        out.document(summary)
        return
    rows = [
        [
            entry["level"],
            show_mib(entry["bytes"] / 2**20),
            f"{entry['bpw']:.2f}",
            ", ".join(f"{count} {name}" for name, count in entry["types"].items()),
        ]
        for entry in summary["levels"]
    ]
    out.table(["Level", "MiB", "Bits/weight", "Types"], rows)
    saved = f"{summary['work_saved_pct']:.0f} % saved"
    out.text(
        f"{show_size(summary['bytes'])} in all, {show_size(summary['free_bytes'])} free; "
        f"{summary['weights_encoded'] / 1e6:.0f} million weights to encode instead of "
        f"{summary['weights_without_sharing'] / 1e6:.0f} ({saved}), "
        f"about {show_time(summary['estimated_seconds'])}"
    )

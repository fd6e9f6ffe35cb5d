"""minitron quantize --size and its kin: what is asked of the size dial, and what it answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from minitron_cli.options.dial import DialOptions
from minitron_cli.output import Output
from minitron_cli.quantizing.curves import draw
from minitron_cli.units import parse_size, show_mib
from minitron_core.errors import NotFound, Unsupported, Usage
from minitron_core.gguf import F32, TYPE
from minitron_engine.llama.kernel_support import types_without_kernel
from minitron_quant.chunking import ChunkSettings
from minitron_quant.levels import LEVELS, level_named
from minitron_quant.mixed_precision.build_mix import BuiltMix, MixBuilder, MixSettings, MixTarget
from minitron_quant.mixed_precision.size_solver import Point, Restrictions
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.options import ENCODABLE, parse_tensor_type, type_named
from minitron_quant.quantize.prepare import QuantizeSettings, folder_of, model_name

_CURVE_POINTS = 24


def _wanted(options: DialOptions) -> MixTarget:
    """What the file is to be."""
    return MixTarget(
        None if options.size is None else parse_size(options.size),
        options.bpw,
        None if options.like is None else level_named(options.like),
        options.max_kld,
    )


def build_for_size(
    out: Output, quantize: QuantizeSettings, options: DialOptions, covariance: Path | None
) -> None:
    """Build the mix and show it; with --curve show what could be built."""
    given = quantize.options
    chosen = given.pure or given.overrides or given.keep_split
    if chosen or quantize.include or quantize.exclude or quantize.output:
        raise Usage(
            "a solved mix goes without -o, --pure, --override-kv, --keep-split, --include-weights "
            "and --exclude-weights"
        )
    settings = replace(_settings(quantize, options), covariance=covariance)
    if options.curve:
        _show_curve(out, MixBuilder(settings))
        return
    with out.progress() as listener:
        made = MixBuilder(settings, listener).make()
    if out.as_json:
        out.document(_document(made))
    else:
        _show(out, made)


def _show_curve(out: Output, maker: MixBuilder) -> None:
    """Size against predicted divergence, llama.cpp's own levels among it; nothing is written."""
    curve, presets = maker.solver.curve(_CURVE_POINTS), maker.solver.presets(LEVELS)
    if out.as_json:
        out.document({"curve": _points(curve), "presets": _points(presets)})
        return
    rows = [(point, "") for point in curve] + [(point, point.level) for point in presets]
    rows.sort(key=lambda row: row[0].bytes)
    cells = [
        [level, show_mib(p.bytes / 2**20), f"{p.bits_per_weight:.2f}", f"{p.predicted:.5f}"]
        for p, level in rows
    ]
    out.table(["Level", "MiB", "Bits/weight", "Predicted KLD"], cells)
    out.text(draw(curve, presets))


def parse_types(text: str | None) -> tuple[tuple[int, ...] | None, tuple[int, ...]]:
    """--types: names to choose from, or with a minus before each those to do without.

    Types that a device in use cannot run are left out; Unsupported where one was named.
    """
    names = [name for name in (text or "").split(",") if name]
    excluded = tuple(type_named(name[1:]) for name in names if name.startswith("-"))
    chosen = tuple(type_named(name) for name in names if not name.startswith("-"))
    if excluded and chosen:
        raise Usage("--types takes the types to use, or those to leave out (-iq1_s), not both")
    cannot = types_without_kernel(chosen or ENCODABLE)
    if chosen and cannot:
        kind, device = next(iter(cannot.items()))
        raise Unsupported(f"{device} cannot run {TYPE[kind].name}", "leave it out of --types")
    return chosen or None, (*excluded, *cannot)


def _settings(quantize: QuantizeSettings, options: DialOptions) -> MixSettings:
    types, excluded = parse_types(options.types)
    given = quantize.options
    pins = list(given.tensor_types)
    if given.output_type is not None:
        pins.insert(0, (r"^output\.weight$", given.output_type))
    if given.embedding_type is not None:
        pins.insert(0, (r"^token_embd\.weight$", given.embedding_type))
    floors = list(map(parse_tensor_type, options.floors))
    if given.leave_output:
        floors.insert(0, (r"^output\.weight$", F32))
    return MixSettings(
        quantize,
        options.sensitivity or _nearby(quantize),
        _wanted(options),
        Restrictions(types, excluded, tuple(pins), tuple(floors)),
        None if options.no_verify or options.curve else held_out_settings(quantize, options),
    )


def held_out_settings(quantize: QuantizeSettings, options: DialOptions) -> MeasureSettings:
    """What proves a file: the text of --held-out, beside the source; Usage without one."""
    if options.held_out is None:
        raise Usage(
            "on which text is the mix to be proved?",
            "give one with --held-out, not the calibration's; or --no-verify",
        )
    chunks = ChunkSettings(limit=options.chunks, threads=quantize.threads)
    return MeasureSettings((), options.held_out, chunks, reference=quantize.source)


def _nearby(quantize: QuantizeSettings) -> Path:
    name = f"{model_name(quantize.source)}.sensitivity.json"
    folders = (folder_of(quantize), quantize.source.parent)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise NotFound(
        f"a size needs the model's sensitivity, and there is no {folders[-1] / name}",
        "measure it: minitron sensitivity MODEL -f TEXT; or name one with --sensitivity",
    )


def _points(points: list[Point]) -> list[dict[str, Any]]:
    return [
        {
            "level": point.level,
            "bytes": point.bytes,
            "bits_per_weight": point.bits_per_weight,
            "predicted_kld": point.predicted,
        }
        for point in points
    ]


def _document(made: BuiltMix) -> dict[str, Any]:
    proof, result = made.verification, made.kept or made.result
    return {
        "level": result.level,
        "path": str(result.path),
        "bytes": result.bytes,
        "bits_per_weight": result.bits_per_weight,
        "sha256": result.sha256,
        "kept": "preset" if made.kept else "solved",
        "met": made.met,
        "predicted_kld": made.recipe.predicted,
        "measured_kld": proof.kld if proof else None,
        "measured_kld_error": proof.error if proof else None,
        "baseline": _beside(proof.preset) if proof else None,
        "random": _beside(proof.random) if proof else None,
        "recipe": {name: TYPE[kind].name for name, kind in made.recipe.types},
        "recipe_file": None if made.kept else str(made.recipe_file),
    }


def _beside(other: Any) -> dict[str, Any] | None:
    if other is None:
        return None
    return {
        "level": other.level,
        "bytes": other.bytes,
        "kld": other.baseline_kld,
        "change_pct": other.change_pct,
        "difference": [other.difference.mean, other.difference.low, other.difference.high],
    }


def _show(out: Output, made: BuiltMix) -> None:
    result, proof = made.result, made.verification
    rows = [[result.level, show_mib(result.bytes / 2**20), f"{made.recipe.predicted:.5f}"]]
    headers = ["Level", "MiB", "Predicted KLD"]
    if proof is not None:
        headers += ["KLD", "Solved is", "95 % interval"]
        rows[0] += [f"{proof.kld:.5f}", "", ""]
        for name, other in (("preset", proof.preset), ("random", proof.random)):
            if other is not None:
                low, high = other.interval_pct
                shown = other.level if name == "preset" else "random mix"
                size = show_mib(other.bytes / 2**20)
                change = [f"{other.change_pct:+.1f} %", f"{low:+.1f} … {high:+.1f} %"]
                rows.append([shown, size, "", f"{other.baseline_kld:.5f}", *change])
    out.table(headers, rows)
    if made.kept is not None:
        out.text(f"the solved file is no better than {made.kept.level}, which is kept instead")
    if not made.met:
        out.note("the divergence asked for was not reached: this is the nearest")
    out.text(f"wrote {(made.kept or result).path}")

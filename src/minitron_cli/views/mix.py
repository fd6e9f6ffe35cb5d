"""A mix of types for a size: the file that was made, and the curve of what could be."""

import math
from collections.abc import Sequence
from typing import Any

from minitron_cli.output import Output
from minitron_cli.units import show_mib
from minitron_core.gguf import TYPE
from minitron_quant.mixed_precision.build_mix import BuiltMix
from minitron_quant.mixed_precision.size_solver import Point

CURVE_POINTS = 24
_WIDTH, _HEIGHT = 64, 18
_OTHERS = {"random": "random mix", "independent": "independent GPTQ"}


def show_mix(out: Output, made: BuiltMix) -> None:
    """The file that was made, with what was measured of it."""
    if out.as_json:
        out.document(_document(made))
    else:
        _show_made(out, made)


def show_curve(
    out: Output, curve: Sequence[Point], presets: Sequence[Point], gptq: str | None = None
) -> None:
    """Size against predicted divergence: solved mixes, and llama.cpp's own levels.

    gptq: the method of the codes that divergences are predicted with.
    """
    if gptq:
        out.note(f"predicted with {gptq} codes, as a sum over tensors")
    if out.as_json:
        out.document({"curve": _points(curve), "presets": _points(presets), "gptq": gptq})
        return
    rows = [(point, "") for point in curve] + [(point, point.level) for point in presets]
    rows.sort(key=lambda row: row[0].bytes)
    cells = [
        [level, show_mib(p.bytes / 2**20), f"{p.bits_per_weight:.2f}", f"{p.predicted:.5f}"]
        for p, level in rows
    ]
    out.table(["Level", "MiB", "Bits/weight", "Predicted KLD"], cells)
    out.text(_draw(curve, presets))


def _draw(curve: Sequence[Point], presets: Sequence[Point]) -> str:
    """The solved curve as dots and the levels as circles; divergence on a logarithmic scale."""
    shown = [point for point in (*curve, *presets) if 0 < point.predicted < math.inf]
    if len(shown) < 2:
        return ""
    sizes = [point.bytes / 2**20 for point in shown]
    heights = [math.log10(point.predicted) for point in shown]
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for point, size, height in zip(shown, sizes, heights, strict=True):
        column = _place(size, min(sizes), max(sizes), _WIDTH)
        row = _HEIGHT - 1 - _place(height, min(heights), max(heights), _HEIGHT)
        cells[row][column] = "o" if point in presets else "·"
    labels = {0: f"{10 ** max(heights):9.2g}", _HEIGHT - 1: f"{10 ** min(heights):9.2g}"}
    lines = [f"{labels.get(number, ''):>9} │{''.join(row)}" for number, row in enumerate(cells)]
    axis = f"{'KLD':>9} └{'─' * _WIDTH}"
    ends = f"{min(sizes):.2f}", f"{max(sizes):.2f} MiB"
    scale = f"{'':>11}{ends[0]}{ends[1]:>{_WIDTH - len(ends[0])}}"
    return "\n".join([*lines, axis, scale, f"{'':>11}· solved   o llama.cpp's levels"])


def _place(value: float, low: float, high: float, cells: int) -> int:
    return round((value - low) / (high - low) * (cells - 1)) if high > low else 0


def _points(points: Sequence[Point]) -> list[dict[str, Any]]:
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
        "kept": (proof.replaced_by if proof else None) or "solved",
        "gptq": made.gptq,
        "met": made.met,
        "predicted_kld": made.recipe.predicted,
        "measured_kld": proof.kld if proof else None,
        "measured_kld_error": proof.error if proof else None,
        "baseline": _beside(proof.preset) if proof else None,
        "random": _beside(proof.random) if proof else None,
        "independent": _beside(proof.independent) if proof else None,
        "recipe": {name: TYPE[ggml_type].name for name, ggml_type in made.recipe.types},
        "recipe_file": str(made.recipe_file) if made.recipe_file.exists() else None,
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


def _show_made(out: Output, made: BuiltMix) -> None:
    result, proof = made.result, made.verification
    rows = [[result.level, show_mib(result.bytes / 2**20), f"{made.recipe.predicted:.5f}"]]
    headers = ["Level", "MiB", "Predicted KLD"]
    if proof is not None:
        headers += ["KLD", "Solved is", "95 % interval"]
        rows[0] += [f"{proof.kld:.5f}", "", ""]
        for name, other in proof.others.items():
            low, high = other.interval_pct
            shown = other.level if name == "preset" else _OTHERS[name]
            size = show_mib(other.bytes / 2**20)
            change = [f"{other.change_pct:+.1f} %", f"{low:+.1f} … {high:+.1f} %"]
            rows.append([shown, size, "", f"{other.baseline_kld:.5f}", *change])
    out.table(headers, rows)
    if made.kept is not None:
        out.text(f"the solved file is not better than {made.kept.level}, which is kept instead")
    if not made.met:
        out.note("the divergence asked for was not reached: this is the nearest")
    out.text(f"wrote {(made.kept or result).path}")

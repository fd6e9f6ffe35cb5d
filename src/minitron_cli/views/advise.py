"""The advice which level fits."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from minitron_cli.output import Output
from minitron_cli.units import show_size
from minitron_quant.advise import Budget, Fit, best_level, choose
from minitron_quant.levels import level_named


def show_advice(out: Output, fits: Sequence[Fit], budget: Budget, ctx: int, model: Path) -> None:
    """The level to choose and why, the command that uses it, then what every level takes."""
    best, why = choose(fits)
    level = best_level(fits) if best is not None and best.full_precision else None
    if out.as_json:
        out.document(
            {
                **asdict(budget),
                "ctx": ctx,
                "choice": best and best.level,
                "path": best and best.path,
                "why": why,
                "level": level and level.level,
                "levels": [asdict(each) for each in fits],
            }
        )
        return
    if best is None:
        out.text(f"Nothing fits: {why}.")
    else:
        memory = f"{show_size(best.vram)} of {show_size(budget.vram)} on the GPU"
        out.text(f"{best.level}: {why}.\n{memory}, {show_size(best.ram)} of RAM.")
        if level is not None:
            out.text(f"{level.level} is the best of the levels: {_compared(level, best)}.")
        out.text(f"Next: {_next(level or best, model)}")
    out.text("")
    headers = ["Level", "Weights", "KV cache", "Compute", "On the GPU", "Layers", "RAM"]
    measured_too = any(each.ppl is not None for each in fits)
    out.table(headers + ["PPL", "KLD"] * measured_too, [_cells(e, measured_too) for e in fits])


def _compared(level: Fit, full: Fit) -> str:
    told = f"{100 * level.bytes / full.bytes:.0f} % of the size"
    if level.kld_mean is not None:
        return f"{told}, a divergence of {level.kld_mean:.4f}"
    return told if level.ppl is None else f"{told}, a perplexity of {level.ppl:.4f}"


def _next(best: Fit, model: Path) -> str:
    if best.path is not None:
        return f'minitron generate {shlex.quote(best.path)} "The old house stood"'
    text = " -f TEXT" if level_named(best.level).needs_imatrix else ""
    return f"minitron quantize {shlex.quote(str(model))} {best.level}{text}"


def _cells(each: Fit, measured_too: bool) -> list[str]:
    sizes = [each.weights, each.cache, each.compute, each.vram]
    cells = [
        each.level,
        *map(show_size, sizes),
        f"{each.offloaded}/{each.layers}",
        show_size(each.ram) + ("" if each.fits else " !"),
    ]
    if measured_too:
        cells += ["" if each.ppl is None else f"{each.ppl:.4f}"]
        cells += ["" if each.kld_mean is None else f"{each.kld_mean:.4f}"]
    return cells

"""The advice which level fits."""

from collections.abc import Sequence
from dataclasses import asdict

from minitron_cli.output import Output
from minitron_cli.units import show_size
from minitron_quant.advise import Budget, Fit, choose


def show_advice(out: Output, fits: Sequence[Fit], budget: Budget, ctx: int) -> None:
    """The level to choose and why, then what every level takes."""
    best, why = choose(fits)
    if out.as_json:
        out.document(
            {
                **asdict(budget),
                "ctx": ctx,
                "choice": best and best.level,
                "path": best and best.path,
                "why": why,
                "levels": [asdict(each) for each in fits],
            }
        )
        return
    if best is None:
        out.text(f"Nothing fits: {why}.")
    else:
        memory = f"{show_size(best.vram)} of {show_size(budget.vram)} on the GPU"
        out.text(f"{best.level}: {why}.\n{memory}, {show_size(best.ram)} of RAM.")
    out.text("")
    headers = ["Level", "Weights", "KV cache", "Compute", "On the GPU", "Layers", "RAM"]
    measured_too = any(each.ppl is not None for each in fits)
    out.table(headers + ["PPL", "KLD"] * measured_too, [_cells(e, measured_too) for e in fits])


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

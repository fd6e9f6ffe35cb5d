"""Measured rows as people and programs read them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.output import Output, TableFormat
from minitron_cli.units import show_mib

if TYPE_CHECKING:
    from minitron_quant.perplexity.divergence import Divergence
    from minitron_quant.perplexity.table import Row

# the columns of the published tables of quantized models
PUBLISHED = ("Quant", "Size (MB)", "PPL", "Size (%)", "Accuracy (%)", "PPL error rate")

# a sum over a vocabulary in float64 is no better than this
_ROUNDING = 1e-12

COMPARED = ["Size (%)", "Accuracy (%)", "KLD", "KLD error", "KLD 99 %", "Same top (%)"]


def published_cells(row: "Row", *, marked: bool = False) -> list[str]:
    """One row of the published table; accuracy and size in percent need a reference.

    marked: with a mark at what another level beats, which notes_of explains.
    """
    name = row.level or row.model
    return [
        _marked(name, row) if marked else name,
        show_mib(row.size_mib),
        f"{row.ppl:.4f}",
        _percent(row.size_pct),
        _percent(row.accuracy_pct),
        f"{row.ppl_error:.5f}",
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


DOMINATED = "\u2020"


def show_measured(out: Output, rows: Sequence["Row"], table_format: TableFormat) -> None:
    """The rows of files measured for themselves: the file names tell them apart."""
    headers = ["Model", "Size (MB)", "PPL", "PPL error rate"]
    cells = [
        [row.model, show_mib(row.size_mib), f"{row.ppl:.4f}", f"{row.ppl_error:.5f}"]
        for row in rows
    ]
    if any(row.accuracy_pct is not None for row in rows):
        headers += COMPARED
        cells = [line + compared_cells(row) for line, row in zip(cells, rows, strict=True)]
    if table_format == "csv":
        headers.append("Dominated by")
        cells = [[*line, row.dominated_by or ""] for line, row in zip(cells, rows, strict=True)]
    else:
        cells = [[_marked(line[0], row), *line[1:]] for line, row in zip(cells, rows, strict=True)]
    out.table(headers, cells, table_format)
    if table_format != "csv":
        show_notes(out, rows)


def show_notes(out: Output, rows: Sequence["Row"]) -> None:
    """The notes below a table, after an empty line."""
    for number, note in enumerate(notes_of(rows)):
        out.text(note if number else f"\n{note}")


def _marked(name: str, row: "Row") -> str:
    return f"{name} {DOMINATED}" if row.dominated_by else name


def notes_of(rows: Sequence["Row"]) -> list[str]:
    """What belongs below a table: what the mark means, and how large differences by chance are."""
    notes = []
    if any(row.dominated_by for row in rows):
        notes.append(f"{DOMINATED} another model is smaller and has a lower perplexity.")
    notes += [_noise_floor(row.noise) for row in rows if row.noise]
    return notes


def _noise_floor(noise: "Divergence") -> str:
    """How much of a divergence is rounding: of float64 alone where the logits were the same."""
    if noise.kld_max < _ROUNDING:
        return "Noise floor: none (in other batch shapes the reference gives the same logits)."
    return (
        f"Noise floor: KLD {noise.kld_mean:.1e} ± {noise.kld_error:.1e}, at most "
        f"{noise.kld_max:.1e} (the reference against itself in other batch shapes)."
    )


def compared_cells(row: "Row") -> list[str]:
    """What a row says beside its reference: relative size, accuracy, divergence."""
    cells = [_percent(row.size_pct), _percent(row.accuracy_pct)]
    divergence = row.divergence
    if divergence is None:
        return [*cells, "", "", "", ""]
    return [
        *cells,
        f"{divergence.kld_mean:.6f}",
        f"{divergence.kld_error:.6f}",
        f"{divergence.kld_p99:.4f}",
        f"{divergence.same_top_pct:.2f}",
    ]


def differences_of(rows: Sequence["Row"]) -> list[dict[str, Any]]:
    """Every pair of rows, for JSON: PPL of a / PPL of b, KLD of a − KLD of b, 95 % intervals."""
    from minitron_quant.perplexity.paired import compare_all

    return [
        {
            "a": rows[pair.a].model,
            "b": rows[pair.b].model,
            "ppl_ratio": pair.ppl_ratio.mean,
            "ppl_ratio_low": pair.ppl_ratio.low,
            "ppl_ratio_high": pair.ppl_ratio.high,
            "kld_difference": pair.kld and pair.kld.mean,
            "kld_difference_low": pair.kld and pair.kld.low,
            "kld_difference_high": pair.kld and pair.kld.high,
        }
        for pair in compare_all([row.chunk_nll for row in rows], [row.chunk_kld for row in rows])
    ]


def show_differences(
    out: Output, differences: Sequence[dict[str, Any]], table_format: TableFormat
) -> None:
    """What differences_of found, below the table of the models."""
    headers = ["Model", "Beside", "PPL ratio", "from", "to"]
    keys = [("ppl_ratio", ".5f"), ("ppl_ratio_low", ".5f"), ("ppl_ratio_high", ".5f")]
    if any(each["kld_difference"] is not None for each in differences):
        headers += ["KLD difference", "from", "to"]
        keys += [(f"kld_difference{end}", "+.6f") for end in ("", "_low", "_high")]
    cells = [
        [each["a"], each["b"], *("" if each[k] is None else f"{each[k]:{f}}" for k, f in keys)]
        for each in differences
    ]
    out.text("")
    out.table(headers, cells, table_format, left=2)


def measured_document(text: Path, ctx: int, rows: Sequence["Row"]) -> dict[str, Any]:
    """The JSON document of the contract."""
    return {
        "text": str(text),
        "ctx": ctx,
        "chunks": rows[0].chunks if rows else 0,
        "noise_floor": next((asdict(row.noise) for row in rows if row.noise), None),
        "rows": [row.document() for row in rows],
    }

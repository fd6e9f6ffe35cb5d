"""Perplexity and divergence as people and programs read them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.output import Output, TableFormat
from minitron_cli.units import show_mib

if TYPE_CHECKING:
    from minitron_quant.perplexity.measures import Column, Divergence, Row
    from minitron_quant.perplexity.paired import ModelDifference

Cells = tuple[list[str], list[list[str]]]

# a sum over a vocabulary in float64 is not more accurate than this
_ROUNDING = 1e-12
DOMINATED = "\u2020"


def measure_table(rows: Sequence["Row"], *, levels: bool = False, marked: bool = False) -> Cells:
    """Headers and cells of every measure that some row has.

    levels: name files by their level. marked: mark the files that notes_of explains.
    """
    from minitron_quant.perplexity.measures import columns

    documents = [row.document() for row in rows]
    headers, cells = table_cells(documents, columns(documents))
    names = [row.level or row.model if levels else row.model for row in rows]
    if marked:
        marks = (f" {DOMINATED}" if row.dominated_by else "" for row in rows)
        names = [name + mark for name, mark in zip(names, marks, strict=True)]
    lines = [[name, *line] for name, line in zip(names, cells, strict=True)]
    return ["Quant" if levels else "Model", *headers], lines


def table_cells(
    documents: Sequence[Mapping[str, Any]], columns: Iterable["Column"], skip: Collection[str] = ()
) -> Cells:
    """Headers and cells of rows as JSON documents have them, without the keys to skip."""
    shown = [column for column in columns if column.key not in skip]
    cells = [[format_value(row.get(c.key), c.format) for c in shown] for row in documents]
    return [column.heading for column in shown], cells


def format_value(value: float | None, form: str) -> str:
    """A number as a format specification, or mib, says; an empty text for None."""
    if value is None:
        return ""
    return show_mib(value) if form == "mib" else f"{value:{form}}"


def show_measured(
    out: Output,
    rows: Sequence["Row"],
    table_format: TableFormat,
    differences: Sequence["ModelDifference"] | None = None,
) -> None:
    """Print one file's perplexity, or a table with the notes below it; csv has a column instead."""
    if len(rows) == 1 and table_format == "table":
        out.text(f"PPL = {rows[0].ppl:.4f} ± {rows[0].ppl_error:.5f} ({rows[0].chunks} chunks)")
        return
    csv = table_format == "csv"
    headers, cells = measure_table(rows, marked=not csv)
    if csv:
        headers.append("Dominated by")
        cells = [[*line, row.dominated_by or ""] for line, row in zip(cells, rows, strict=True)]
    out.table(headers, cells, table_format)
    if not csv:
        show_notes(out, rows)
    if differences:
        _show_differences(out, differences, table_format)


def row_line(row: "Row") -> str:
    """One line when a model is measured, for someone who watches."""
    kld = "" if row.divergence is None else f", KLD {row.divergence.kld_mean:.6f}"
    return f"{row.model}: PPL {row.ppl:.4f} ± {row.ppl_error:.5f}{kld}"


def show_notes(out: Output, rows: Sequence["Row"]) -> None:
    """Print the notes below a table, after an empty line."""
    for number, note in enumerate(notes_of(rows)):
        out.text(note if number else f"\n{note}")


def notes_of(rows: Sequence["Row"]) -> list[str]:
    """The notes below a table: what the mark means, and which differences are rounding."""
    notes = []
    if any(row.dominated_by for row in rows):
        notes.append(f"{DOMINATED} another model of at most that size is better beyond chance.")
    notes += [_noise_floor(row.noise) for row in rows if row.noise]
    return notes


def _noise_floor(noise: "Divergence") -> str:
    """How much of a divergence is rounding; only float64's where the logits are the same."""
    if noise.kld_max < _ROUNDING:
        return "Noise floor: none (the reference gives the same logits in batches of any size)."
    return (
        f"Noise floor: KLD {noise.kld_mean:.1e} ± {noise.kld_error:.1e}, at most "
        f"{noise.kld_max:.1e} (the reference against itself in batches of another size)."
    )


def _show_differences(
    out: Output, differences: Sequence["ModelDifference"], table_format: TableFormat
) -> None:
    from minitron_quant.perplexity.measures import columns_of

    documents = [asdict(each) for each in differences]
    headers, cells = table_cells(documents, columns_of(map(type, differences[:1]), documents))
    lines = [[each.a, each.b, *line] for each, line in zip(differences, cells, strict=True)]
    out.text("")
    out.table(["Model", "Compared with", *headers], lines, table_format, left=2)


def measured_document(
    text: Path,
    ctx: int,
    rows: Sequence["Row"],
    differences: Sequence["ModelDifference"] | None = None,
) -> dict[str, Any]:
    """The JSON document of the contract; with differences where they were asked for."""
    document = {
        "text": str(text),
        "ctx": ctx,
        "chunks": rows[0].chunks if rows else 0,
        "noise_floor": next((asdict(row.noise) for row in rows if row.noise), None),
        "rows": [row.document() for row in rows],
    }
    if differences is not None:
        document["differences"] = [asdict(each) for each in differences]
    return document

"""Measured rows as people and programs read them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.output import Output, TableFormat
from minitron_cli.sizes import show_mib

if TYPE_CHECKING:
    from minitron_quant.measure.table import Row

# the columns of the published tables of quantized models
PUBLISHED = ("Quant", "Size (MB)", "PPL", "Size (%)", "Accuracy (%)", "PPL error rate")


def published_cells(row: "Row") -> list[str]:
    """One row of the published table; accuracy and size in percent need a reference."""
    return [
        row.level or row.model,
        show_mib(row.size_mib),
        f"{row.ppl:.4f}",
        _percent(row.size_pct),
        _percent(row.accuracy_pct),
        f"{row.ppl_error:.5f}",
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def show_measured(out: Output, rows: Sequence["Row"], table_format: TableFormat) -> None:
    """The rows of files measured for themselves: the file names tell them apart."""
    cells = [
        [row.model, show_mib(row.size_mib), f"{row.ppl:.4f}", f"{row.ppl_error:.5f}"]
        for row in rows
    ]
    out.table(["Model", "Size (MB)", "PPL", "PPL error rate"], cells, table_format)


def measured_document(text: Path, ctx: int, rows: Sequence["Row"]) -> dict[str, Any]:
    """The JSON document of the contract."""
    return {
        "text": str(text),
        "ctx": ctx,
        "chunks": rows[0].chunks if rows else 0,
        "rows": [row.document() for row in rows],
    }

"""Scores of tasks as people and programs read them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.output import Output, TableFormat
from minitron_cli.units import show_mib

if TYPE_CHECKING:
    from minitron_quant.tasks.answers import Answers
    from minitron_quant.tasks.evaluate import TaskRow

_COLUMNS = ["Model", "Size (MB)", "Questions", "Score (%)", "95 % from", "to", "Chance (%)"]
_COMPARED = ["Changed", "Lost", "Gained", "McNemar p"]


def show_tasks(out: Output, rows: Sequence["TaskRow"], table_format: TableFormat) -> None:
    """A table of models; with a reference also how many answers changed, and how surely."""
    headers, cells = _COLUMNS, [_cells(row) for row in rows]
    if any(row.flips for row in rows):
        headers = _COLUMNS + _COMPARED
        cells = [line + _compared(row) for line, row in zip(cells, rows, strict=True)]
    out.table(headers, cells, table_format)


def _cells(row: "TaskRow") -> list[str]:
    return [
        row.model,
        show_mib(row.size_mib),
        str(row.questions),
        f"{row.score_pct:.2f}",
        f"{row.score_low_pct:.2f}",
        f"{row.score_high_pct:.2f}",
        f"{row.chance_pct:.2f}",
    ]


def _compared(row: "TaskRow") -> list[str]:
    flips = row.flips
    if flips is None:
        return [""] * len(_COMPARED)
    return [str(flips.flips), str(flips.lost), str(flips.gained), f"{flips.mcnemar_p:.4f}"]


def tasks_document(task: str, data: Path, rows: Sequence["TaskRow"]) -> dict[str, Any]:
    """The JSON document."""
    return {"task": task, "data": str(data), "rows": [row.document() for row in rows]}


def answer_lines(found: Sequence[tuple["TaskRow", "Answers"]]) -> str:
    """Every answer of every model as JSON lines."""
    return "".join(
        json.dumps({"model": row.model, **asdict(answer)}, ensure_ascii=False) + "\n"
        for row, answers in found
        for answer in answers.answers
    )

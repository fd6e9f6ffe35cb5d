"""Scores of tasks as people and programs read them."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.output import Output, TableFormat
from minitron_cli.views.perplexity import Cells, table_cells

if TYPE_CHECKING:
    from minitron_quant.tasks.answers import Answers
    from minitron_quant.tasks.evaluate import TaskRow


def show_tasks(out: Output, rows: Sequence["TaskRow"], table_format: TableFormat) -> None:
    """Print a table of models; with a reference also how many answers changed, and the p-value."""
    documents = [row.document() for row in rows]
    headers, cells = task_table(documents, [row.model for row in rows])
    out.table(headers, cells, table_format)


def task_table(
    documents: Sequence[dict[str, Any]], names: Sequence[str], skip: Collection[str] = ()
) -> Cells:
    """Headers and cells of rows as JSON documents have them, without the keys to skip."""
    from minitron_quant.tasks.evaluate import task_columns

    headers, cells = table_cells(documents, task_columns(documents), skip)
    return ["Model", *headers], [[name, *line] for name, line in zip(names, cells, strict=True)]


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

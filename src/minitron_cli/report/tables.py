"""The tables of a report, as headers and cells for every form that it takes."""

from collections.abc import Sequence
from typing import Any

from minitron_cli.pipeline.stages import speeds_of
from minitron_cli.views.perplexity import Cells, format_value, measure_table
from minitron_cli.views.tasks import task_table
from minitron_quant.perplexity.measures import Row

# what a task's title or the table of perplexity says
_IN_TITLE = ("size_mib", "questions", "chance_pct")


def main_table(
    rows: Sequence[Row], speed: Sequence[dict[str, Any]] = (), *, marked: bool = False
) -> Cells:
    """Every measure that was measured, with the speed where it was."""
    headers, cells = measure_table(rows, levels=True, marked=marked)
    if speed:
        speeds = speeds_of(speed)
        headers += ["Prompt t/s", "Generation t/s"]
        cells = [
            line + [format_value(each, ".1f") for each in speeds.get(row.model, (None, None))]
            for line, row in zip(cells, rows, strict=True)
        ]
    return headers, cells


def task_cells(task: dict[str, Any]) -> Cells:
    """A task's scores with their 95 % intervals, and the changes from the reference."""
    names = [row["level"] or row["model"] for row in task["rows"]]
    return task_table(task["rows"], names, skip=_IN_TITLE)


def task_title(task: dict[str, Any]) -> str:
    """The name, the questions and the score of guessing."""
    first = task["rows"][0]
    guessed = f"guessing gives {first['chance_pct']:.1f} %"
    return f"{task['task']}: {first['questions']} questions of {task['data']}; {guessed}"

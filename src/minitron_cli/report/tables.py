"""The tables of a report, as headers and cells for every form that it takes."""

from collections.abc import Sequence
from typing import Any

from minitron_cli.pipeline.stages import speeds_of
from minitron_cli.views.perplexity import Cells, format_value, measure_table
from minitron_quant.perplexity.measures import Row

_SCORES = ("score_pct", "score_low_pct", "score_high_pct")
_FLIPS = ("flips", "lost", "gained")


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


def task_table(task: dict[str, Any]) -> Cells:
    """A task's scores with their 95 % intervals, and what changed beside the reference."""
    headers = ["Model", "Score (%)", "95 % from", "to", "Changed", "Lost", "Gained", "McNemar p"]
    cells = [
        [
            row["level"] or row["model"],
            *(f"{row[key]:.2f}" for key in _SCORES),
            *(format_value(row[key], "d") for key in _FLIPS),
            format_value(row["mcnemar_p"], ".4f"),
        ]
        for row in task["rows"]
    ]
    return headers, cells


def task_title(task: dict[str, Any]) -> str:
    """What the task was and what guessing would give."""
    first = task["rows"][0]
    guessed = f"guessing gives {first['chance_pct']:.1f} %"
    return f"{task['task']}: {first['questions']} questions of {task['data']}; {guessed}"

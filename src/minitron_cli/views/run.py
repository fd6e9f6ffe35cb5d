"""A job before it runs, and its tables and stages after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_cli.errors import explain
from minitron_cli.output import Output
from minitron_cli.pipeline.job_file import Job
from minitron_cli.pipeline.run import STAGES, Finished
from minitron_cli.units import show_size, show_time
from minitron_cli.views.perplexity import measure_table, measured_document, show_notes

_SHOWN = 3


def show_forecast(out: Output, jobs: Sequence[Job], documents: Sequence[dict[str, Any]]) -> None:
    """What jobs would do; one document for one job, a list for several."""
    if out.as_json:
        out.document(documents[0] if len(documents) == 1 else list(documents))
        return
    for job, document in zip(jobs, documents, strict=True):
        if len(jobs) > 1:
            out.text(f"{job.model.source}:")
        out.text("\n".join(_forecast_lines(document)))


def show_finished(out: Output, finished: Sequence[Finished]) -> int:
    """Show the tables, the stages and what went wrong; returns the exit code of the first error."""
    if out.as_json:
        documents = [_document(each) for each in finished]
        out.document(documents[0] if len(documents) == 1 else documents)
    else:
        for each in finished:
            _show(out, each)
    code = 0
    for each in finished:
        failure = explain(each.error) if each.error else None
        if failure is not None:
            named = f"{Path(each.job.model.source).name}: " if len(finished) > 1 else ""
            out.error(f"{named}{failure.message}", failure.hint)
            code = code or failure.exit_code
    return code


def _show(out: Output, finished: Finished) -> None:
    if finished.rows:
        out.table(*measure_table(finished.rows, levels=True, marked=True))
        show_notes(out, finished.rows)
    told = " · ".join(
        f"{stage.name} {stage.outcome}"
        + (f" in {show_time(stage.seconds)}" if stage.outcome == "done" else "")
        for stage in finished.stages
        # what a job does not ask for is not worth a word
        if finished.error is not None or stage.outcome != "skipped"
    )
    out.note(told)
    out.note(f"everything is in {finished.job.output.directory}")


def _document(finished: Finished) -> dict[str, Any]:
    section = finished.job.measure
    return {
        "model": finished.job.model.source,
        **measured_document(section.text or Path(), section.ctx, finished.rows),
        "stages": [
            {"name": stage.name, "outcome": stage.outcome, "seconds": stage.seconds}
            for stage in finished.stages
        ],
    }


def _forecast_lines(document: dict[str, Any]) -> list[str]:
    """The forecast for people, a line or more per stage."""
    lines = []
    for name in STAGES:
        if name not in document:
            continue
        stage = document[name]
        inputs = ", ".join(stage["inputs"]) or "–"
        outputs = stage["outputs"]
        sizes = sum(each["bytes"] or 0 for each in outputs)
        told = ", ".join(each["name"] for each in outputs[:_SHOWN])
        told += f" and {len(outputs) - _SHOWN} more" if len(outputs) > _SHOWN else ""
        cost = [show_size(sizes)] if sizes else []
        if stage["estimated_seconds"] >= 1:
            cost.append(f"about {show_time(stage['estimated_seconds'])}")
        end = f" ({', '.join(cost)})" if cost else ""
        lines.append(f"{name:9} {inputs} → {told or 'the table'}{end}")
    disk = document["disk"]
    lines.append(f"disk      {show_size(disk['bytes'])} of {show_size(disk['free_bytes'])} free")
    return lines

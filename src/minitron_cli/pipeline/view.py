"""What `minitron run` shows: the plan before a job, and the tables and stages after it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minitron_cli.errors import explain
from minitron_cli.output import Output
from minitron_cli.pipeline.dry_run import forecast, forecast_lines
from minitron_cli.pipeline.job_file import Job
from minitron_cli.pipeline.run import Finished
from minitron_cli.report.plots import require_matplotlib
from minitron_cli.units import show_time
from minitron_cli.views.perplexity import measure_table, measured_document, show_notes


def check_needs(jobs: Sequence[Job]) -> None:
    """Stop before the work if what its report needs is not installed."""
    if any("html" in job.output.report for job in jobs):
        require_matplotlib()


def show_forecast(out: Output, jobs: Sequence[Job]) -> None:
    """What jobs would do; one document for one job, a list for several."""
    documents = [forecast(job) for job in jobs]
    if out.as_json:
        out.document(documents[0] if len(documents) == 1 else documents)
        return
    for job, document in zip(jobs, documents, strict=True):
        if len(jobs) > 1:
            out.text(f"{job.model.source}:")
        out.text("\n".join(forecast_lines(document)))


def finish(out: Output, finished: Sequence[Finished]) -> int:
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

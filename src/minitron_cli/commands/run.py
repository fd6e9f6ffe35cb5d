"""minitron run: a whole job from one file."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.parameters import Json, Quiet, Verbose

EXAMPLES = """minitron run examples/nano.toml
minitron run job.toml --resume
minitron run job.toml --dry-run"""


def run(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="The job file.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an earlier run of this job.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert, calibrate, quantize, measure and report, as a job file says."""
    from minitron_cli.jobs import load_job
    from minitron_cli.output import Output
    from minitron_cli.pipeline import Pipeline, describe, refuse_used_folder
    from minitron_cli.plots import require_matplotlib
    from minitron_cli.tables import PUBLISHED, measured_document, published_cells, show_notes

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    described = load_job(job)
    if dry_run:
        plan = describe(described)
        out.result(plan, "\n".join(f"{name:12} {what}" for name, what in plan.items()))
        return
    if "html" in described.output.report:
        require_matplotlib()
    if not resume:
        refuse_used_folder(described)
    with out.progress() as listener:
        rows = Pipeline(described, out, listener).run()
    if as_json:
        text = described.measure.text or Path()
        out.document(measured_document(text, described.measure.ctx, rows))
        return
    out.table(PUBLISHED, [published_cells(row, marked=True) for row in rows])
    show_notes(out, rows)
    out.note(f"everything is in {described.output.directory}")

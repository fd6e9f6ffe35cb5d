"""minitron run: a whole job from one file."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.completion import complete_job
from minitron_cli.options.parameters import Json, Quiet, Verbose

EXAMPLES = """minitron run examples/nano.toml
minitron run job.toml --resume
minitron run job.toml --dry-run
minitron run job.toml --executor dask://10.0.0.1:8786"""


def run(
    job: Annotated[
        Path,
        typer.Argument(metavar="JOB.toml", help="The job file.", autocompletion=complete_job),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an earlier run of this job.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done.")
    ] = False,
    executor: Annotated[
        str | None,
        typer.Option(metavar="dask://HOST:PORT", help="Convert and measure on a Dask cluster."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert, calibrate, quantize, measure and report, as a job file says."""
    from minitron_cli.output import Output
    from minitron_cli.pipeline.executors import open_executor
    from minitron_cli.pipeline.job_file import load_jobs
    from minitron_cli.pipeline.run import refuse_used_folders, run_jobs
    from minitron_cli.pipeline.view import check_needs, finish, show_forecast

    out = Output(verbose=verbose, quiet=quiet, as_json=as_json)
    jobs = load_jobs(job)
    if dry_run:
        show_forecast(out, jobs)
        return
    check_needs(jobs)
    if not resume:
        refuse_used_folders(jobs)
    with open_executor(executor) as place, out.progress() as listener:
        finished = run_jobs(jobs, out, listener, place)
    raise typer.Exit(finish(out, finished))

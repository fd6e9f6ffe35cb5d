"""minitron run: a whole job from one file."""

from pathlib import Path
from typing import Annotated

import typer

from minitron_cli.options.completion import complete_job
from minitron_cli.options.generation import DeviceOptions
from minitron_cli.options.parameters import ConsoleOptions, GpuLayers, Threads, gpu_layers

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
        bool, typer.Option("--resume", help="Continue an earlier run although the job was changed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be done.")
    ] = False,
    executor: Annotated[
        str | None,
        typer.Option(metavar="dask://HOST:PORT", help="Convert and measure on a Dask cluster."),
    ] = None,
    threads: Threads = None,
    layers: GpuLayers = "auto",
    *,
    spread: DeviceOptions,
    console: ConsoleOptions,
) -> None:
    """Convert, calibrate, quantize, measure and report, as a job file says."""
    from minitron_cli.pipeline.checks import check_names
    from minitron_cli.pipeline.dry_run import forecast
    from minitron_cli.pipeline.job_file import load_jobs
    from minitron_cli.pipeline.run import run as run_jobs
    from minitron_cli.pipeline.stages import Machine
    from minitron_cli.views.run import show_finished, show_forecast

    out = console.output()
    if dry_run:
        jobs = load_jobs(job)
        for each in jobs:
            check_names(each)
        show_forecast(out, jobs, [forecast(each) for each in jobs])
        return
    placement = spread.placement(out)
    machine = Machine(threads, gpu_layers(layers, out), placement)
    with out.progress(again="--resume") as listener:
        finished = run_jobs(
            job,
            resume=resume,
            executor=executor,
            machine=machine,
            progress=listener,
            note=out.note,
        )
    raise typer.Exit(show_finished(out, finished))

"""What is checked of a job before any work: packages, levels, and every path that it names."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from minitron_cli.pipeline.job_file import Job
from minitron_cli.pipeline.mixes import check_sizes
from minitron_cli.pipeline.state import State
from minitron_convert.checkpoint.folder import open_checkpoint
from minitron_convert.hub.download import parse_repository
from minitron_core.errors import AlreadyExists, Denied, NotFound
from minitron_core.hashing import fingerprint
from minitron_quant.levels import parse_levels

STATE = ".minitron-run.json"


def check_before(jobs: Sequence[Job], *, resume: bool) -> None:
    """Stop before the work if another job was run there.

    resume: continue an earlier run with a job that was changed.
    """
    for job in jobs:
        folder = job.output.directory
        if not resume and (folder / STATE).exists() and not _is_of(job, folder):
            raise AlreadyExists(
                f"{folder} holds the run of another job, or of this one before it was changed",
                "--resume continues it with the job as it is; or choose another directory",
            )


def check_names(job: Job) -> None:
    """Stop before the work if a level, a size or a path of the job means nothing.

    Raises NotFound, Denied, Unsupported, Usage. Names on the Hub are not looked up.
    """
    parse_levels(job.quantize.levels)
    check_sizes(job)
    missing = [path for path in _paths(job) if not path.exists()]
    if missing:
        more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        raise NotFound(
            f"{missing[0]}{more}, which the job names, does not exist",
            "paths are relative to the job file",
        )
    if parse_repository(job.model.source) is None:
        open_checkpoint(Path(job.model.source))
    _check_writable(job.output.directory)


def job_key(job: Job) -> str:
    """One hash over a job, by which a later run knows it."""
    return fingerprint("job", repr(job))


def _is_of(job: Job, folder: Path) -> bool:
    return bool(State(folder / STATE).get("job") == job_key(job))


def _paths(job: Job) -> Iterator[Path]:
    yield from job.calibration.text
    if job.measure.text is not None:
        yield job.measure.text
    yield from job.tasks.data.values()


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise Denied(f"{there} is not a folder that can be written", "choose another directory")

"""What is checked of a job before any work: packages, levels, and every path that it names."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from minitron.level_conversion import header_alone
from minitron_cli.inputs import open_checkpoint_source
from minitron_cli.pipeline.job_file import Job
from minitron_cli.pipeline.mixes import check_sizes
from minitron_cli.pipeline.state import State
from minitron_convert.checkpoint.folder import open_checkpoint
from minitron_convert.convert import ConvertSettings, plan
from minitron_convert.hub.download import parse_repository
from minitron_convert.plan import Plan
from minitron_core.errors import AlreadyExists, Denied, ImatrixNeeded, MinitronError, NotFound
from minitron_core.hashing import fingerprint
from minitron_core.progress import ignore
from minitron_quant.levels import parse_levels
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.prepare import QuantizeSettings, prepare

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

    Raises NotFound, Denied, Unsupported, Usage, ImatrixNeeded.
    """
    parse_levels(job.quantize.levels)
    check_sizes(job)
    missing = [path for path in _paths(job) if not path.exists()]
    folders = [path for path in _texts(job) if path.is_dir()]
    if missing:
        more = f" (and {len(missing) - 1} more files)" if len(missing) > 1 else ""
        raise NotFound(
            f"{missing[0]}{more}, which the job names, does not exist",
            "paths are relative to the job file",
        )
    if folders:
        raise NotFound(f"{folders[0]} is a folder, not a file", "name the texts in it")
    if parse_repository(job.model.source) is None:
        open_checkpoint(Path(job.model.source))
    _check_writable(job.output.directory)
    if not job.calibration.text:
        _check_importance(job)


def _check_importance(job: Job) -> None:
    """ImatrixNeeded if a level needs a matrix, and the job has no text to collect it on."""
    levels = tuple(parse_levels(job.quantize.levels))
    options = QuantizeOptions(allow_requantize=job.model.requantizes)
    try:
        with planned_conversion(job) as planned, header_alone(planned.files[0]) as header:
            prepare(QuantizeSettings(header.path, levels, options=options))
    except ImatrixNeeded as error:
        raise ImatrixNeeded(str(error), "name a text in [calibration]") from error
    except MinitronError:
        pass  # the job's own stages say so, which keeps no other job from running


@contextmanager
def planned_conversion(job: Job) -> Iterator[Plan]:
    """The plan of a job's conversion, for which weights on the Hub stay there."""
    with open_checkpoint_source(job.model.source, None, ignore, headers_only=True) as source:
        yield plan(ConvertSettings(source.folder, outtype=job.model.outtype, name=source.name))


def job_key(job: Job) -> str:
    """One hash over a job, by which a later run knows it."""
    return fingerprint("job", repr(job))


def _is_of(job: Job, folder: Path) -> bool:
    return bool(State(folder / STATE).get("job") == job_key(job))


def _texts(job: Job) -> tuple[Path, ...]:
    measured = () if job.measure.text is None else (job.measure.text,)
    return (*job.calibration.text, *measured)


def _paths(job: Job) -> tuple[Path, ...]:
    return (*_texts(job), *job.tasks.data.values())


def _check_writable(folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise Denied(f"{there} is not a folder that can be written", "choose another directory")

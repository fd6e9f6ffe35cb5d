"""convert → imatrix → quantize → measure → report: the stages of a job, each done only once."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from minitron_cli.errors import explain
from minitron_cli.inputs import open_checkpoint_source
from minitron_cli.pipeline.checks import STATE, check_before, check_names, job_key
from minitron_cli.pipeline.executors import Executor, open_executor
from minitron_cli.pipeline.job_file import Job, load_jobs
from minitron_cli.pipeline.mixes import make_sizes
from minitron_cli.pipeline.stages import (
    THIS_MACHINE,
    Machine,
    finished_line,
    try_speed,
    try_tasks,
)
from minitron_cli.pipeline.state import Document, State
from minitron_cli.report.write import Findings, write_reports
from minitron_convert.convert import ConvertSettings
from minitron_convert.hub.source import Source
from minitron_core import stop
from minitron_core.errors import from_os_error
from minitron_core.file_lock import exclusive
from minitron_core.hashing import file_sha256, fingerprint
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings
from minitron_quant.imatrix.collect import CollectSettings, ResumePolicy, calibrate, remove_state
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.levels import parse_levels
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import mark_dominated, relate
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.prepare import QuantizeSettings, model_name, prepare
from minitron_quant.quantize.run import LevelResult
from minitron_quant.quantize.run import run as run_quantization

Outcome = Literal["done", "up to date", "failed", "skipped"]
STAGES = ("convert", "imatrix", "quantize", "measure", "tasks", "speed", "report")
Note = Callable[[str], None]
_Result = TypeVar("_Result")
_LOCK = ".minitron-run.lock"
_MEASURED = ".minitron-measured.sqlite"


@dataclass(frozen=True)
class Stage:
    """How a stage of a job ended, and the seconds that it took."""

    name: str
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Finished:
    """A job at its end: its stages, the rows that were measured, and what stopped it, if it was."""

    job: Job
    stages: tuple[Stage, ...]
    rows: tuple[Row, ...]
    error: Exception | None = None


class Pipeline:
    """One job on its way; what is done is written down in the output folder."""

    def __init__(
        self, job: Job, machine: Machine, note: Note, listener: Progress, executor: Executor
    ) -> None:
        self._job = job
        self._machine = machine
        self._executor = executor
        self._note = note
        self._listener = listener
        self._folder = job.output.directory
        self._state = State(self._folder / STATE)
        self._stages: list[Stage] = []

    def run(self) -> Finished:
        """Run the stages that are not up to date, up to one that fails.

        What was measured before a failure is kept and reported. Interruptions are not held back.
        """
        ours = not self._folder.exists()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise from_os_error(error, self._folder, "write") from error
        with exclusive(self._folder / _LOCK, "run"), stop.keeping(self._kept):
            finished = self._run_alone()
        if ours:
            with suppress(OSError):  # a job that fails at once leaves no empty folder
                self._folder.rmdir()
        return finished

    def _kept(self) -> str:
        done = [stage.name for stage in self._stages if stage.outcome in ("done", "up to date")]
        return f"finished stages: {', '.join(done) or 'none'}"

    def _run_alone(self) -> Finished:
        rows: list[Row] = []
        error: Exception | None = None
        try:
            full = self._convert()
            self._state.put("job", job_key(self._job))
            imatrix = self._calibrate(full)
            results = self._quantize(full, imatrix)
            rows, error = self._measure(full, results)
            tasks, speed = self._tasks(full, results), self._speed(full, results)
            if rows or tasks or speed:
                found = Findings(self._job, full, imatrix, rows, results, tasks, speed)
                self._report(found)
        except Exception as failure:
            if explain(failure) is None:
                raise  # a bug is not a result
            error = failure
        missing = STAGES[len(self._stages) :]
        stages = (*self._stages, *(Stage(name, "skipped", 0.0) for name in missing))
        return Finished(self._job, stages, tuple(rows), error)

    def _convert(self) -> Path:
        def work(source: Source) -> tuple[Path, Outcome]:
            outtype = self._job.model.outtype
            key = fingerprint("convert", outtype, *_hashes_of(source.folder))
            known = self._state.finished_file("convert", key, self._note)
            if known is not None:
                return known, "up to date"
            settings = ConvertSettings(
                source.folder, self._folder, outtype=outtype, name=source.name, force=True
            )
            path = self._executor.convert(settings, self._listener)
            self._state.put_file("convert", key, path)
            return path, "done"

        def begin() -> tuple[Path, Outcome]:
            with open_checkpoint_source(self._job.model.source, None, self._listener) as source:
                return work(source)

        return self._stage("convert", begin)

    def _calibrate(self, full: Path) -> Path | None:
        section = self._job.calibration
        path = self._folder / f"{model_name(full)}.imatrix.gguf"

        def work() -> tuple[Path | None, Outcome]:
            if not section.text:
                return None, "skipped"
            texts = [file_sha256(text) for text in section.text]
            chunks = ChunkSettings(n_ctx=section.ctx, limit=section.chunks)
            key = fingerprint("imatrix", file_sha256(full), *texts, repr(chunks))
            if self._state.finished_file("imatrix", key, self._note) == path:
                return path, "up to date"
            chunks = replace(chunks, threads=self._machine.threads)
            loading = ModelSettings(
                full,
                self._machine.gpu_layers,
                n_ctx=chunks.context().n_ctx,
                placement=self._machine.placement,
            )
            with open_model(loading) as model:
                settings = CollectSettings(section.text, chunks)
                keep = ResumePolicy(path, "if possible")
                matrix = calibrate(model, settings, self._listener, keep).matrix
            # the report travels: it names the texts, not the folders of this machine
            matrix.datasets = [text.name for text in section.text]
            write_imatrix(path, matrix)
            remove_state(path)
            self._state.put_file("imatrix", key, path)
            return path, "done"

        return self._stage("imatrix", work)

    def _quantize(self, full: Path, imatrix: Path | None) -> list[LevelResult]:
        levels = tuple(parse_levels(self._job.quantize.levels))

        def work() -> tuple[list[LevelResult], Outcome]:
            # files of an earlier run of this job may be replaced, those of others not
            ours = self._state.get("quantize") is not None
            settings = QuantizeSettings(
                full,
                levels,
                self._folder,
                imatrix=imatrix,
                options=QuantizeOptions(allow_requantize=self._job.model.requantizes),
                threads=self._machine.threads,
                replace="outdated" if ours else "never",
                gpu_layers=self._machine.gpu_layers,
                placement=self._machine.placement,
            )
            batch = prepare(settings)
            self._state.put("quantize", [level.name for level in levels])
            results = [*run_quantization(batch, self._listener), *self._sizes(settings)]
            return results, "up to date" if all(result.kept for result in results) else "done"

        return self._stage("quantize", work)

    def _sizes(self, settings: QuantizeSettings) -> list[LevelResult]:
        """Solved mixes of the sizes that the job names."""
        sizes, texts = self._job.quantize.sizes, self._job.calibration.text
        if not sizes:
            return []
        imatrix = "" if settings.imatrix is None else file_sha256(settings.imatrix)
        key = fingerprint(file_sha256(settings.source), file_sha256(texts[0]), imatrix)
        same = self._state.get("sensitivity") == key
        self._state.put("sensitivity", key)
        return make_sizes(settings, texts[0], sizes, same, self._listener)

    def _measure(
        self, full: Path, results: list[LevelResult]
    ) -> tuple[list[Row], Exception | None]:
        """The rows by size; what stopped it midway comes beside those that were done."""
        section = self._job.measure

        def work() -> tuple[tuple[list[Row], Exception | None], Outcome]:
            if section.text is None:
                return ([], None), "skipped"
            hashes = _hashed(full, results)
            settings = MeasureSettings(
                tuple(hashes),
                section.text,
                ChunkSettings(
                    n_ctx=section.ctx, limit=section.chunks, threads=self._machine.threads
                ),
                self._machine.gpu_layers,
                reference=full if section.divergence else None,
                state=self._folder / _MEASURED,
                hashes=hashes,
                placement=self._machine.placement,
            )
            found, error = _as_far_as_it_goes(self._executor.measure(settings, self._listener))
            reference = next((row for row in found if row.model == full.name), None)
            related = (relate(row, reference) for row in found)
            rows = mark_dominated(sorted(related, key=lambda row: row.size_mib))
            return (rows, error), "failed" if error else "done"

        return self._stage("measure", work)

    def _tasks(self, full: Path, results: list[LevelResult]) -> list[Document]:
        def work() -> tuple[list[Document], Outcome]:
            section, files = self._job.tasks, _hashed(full, results)
            known = self._state.remade
            found = try_tasks(
                section, files, full, self._machine, self._state.remembered, self._listener
            )
            return found, self._outcome(known) if found else "skipped"

        return self._stage("tasks", work)

    def _speed(self, full: Path, results: list[LevelResult]) -> list[Document]:
        def work() -> tuple[list[Document], Outcome]:
            if not self._job.speed.repetitions:
                return [], "skipped"
            known, files = self._state.remade, _hashed(full, results)
            found = try_speed(
                self._job.speed, files, self._machine, self._state.remembered, self._listener
            )
            return found, self._outcome(known)

        return self._stage("speed", work)

    def _outcome(self, known: int) -> Outcome:
        return "up to date" if self._state.remade == known else "done"

    def _report(self, findings: Findings) -> None:
        def work() -> tuple[None, Outcome]:
            write_reports(findings, self._folder)
            return None, "done"

        self._stage("report", work)

    def _stage(self, name: str, work: Callable[[], tuple[_Result, Outcome]]) -> _Result:
        started = time.monotonic()
        outcome: Outcome = "failed"
        try:
            result, outcome = work()
        finally:
            seconds = round(time.monotonic() - started, 2)
            self._stages.append(Stage(name, outcome, seconds))
        if outcome == "up to date":
            self._note(f"{name}: up to date")
        elif outcome == "done":
            self._listener(Event(name, finished=finished_line(name, seconds, result)))
        return result


def _as_far_as_it_goes(rows: Iterator[Row]) -> tuple[list[Row], Exception | None]:
    found: list[Row] = []
    try:
        for row in rows:
            found.append(row)
    except Exception as error:
        if explain(error) is None:
            raise  # a bug is not a result
        return found, error
    return found, None


def run(
    path: Path,
    *,
    resume: bool = False,
    executor: str | None = None,
    machine: Machine = THIS_MACHINE,
    progress: Progress = ignore,
    note: Note = lambda _text: None,
) -> list[Finished]:
    """Run the jobs of a file, one after the other for each of its models.

    A job that fails does not keep the others from running; its `Finished` has the error.
    The same job continues an earlier run; `resume`: also one that was changed since. executor:
    dask://HOST:PORT of a cluster. note: gets sentences about stages that are up to date.
    Raises NotFound or Usage for the file and what it names, before any work; AlreadyExists for
    another job's run.
    """
    jobs = load_jobs(path)
    for job in jobs:
        check_names(job)
    check_before(jobs, resume=resume)
    finished = []
    with open_executor(executor) as place:
        for job in jobs:
            if len(jobs) > 1:
                note(f"model: {job.model.source}")
            finished.append(Pipeline(job, machine, note, progress, place).run())
    return finished


def _hashed(full: Path, results: list[LevelResult]) -> dict[Path, str]:
    """The models of a job and their SHA-256, the full one first."""
    return {full: file_sha256(full)} | {each.path: each.sha256 for each in results}


def _hashes_of(folder: Path) -> list[str]:
    """Names and SHA-256 of a checkpoint's files."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return [f"{path.name} {file_sha256(path)}" for path in paths]

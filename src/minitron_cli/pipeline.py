"""convert → imatrix → quantize → measure → report: the stages of a job, each done only once."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minitron_cli.jobs import Job
from minitron_cli.output import Listener, Output
from minitron_cli.report import Findings, write_reports
from minitron_cli.sources import open_checkpoint_source
from minitron_convert.convert import ConvertSettings, convert, plan
from minitron_convert.hub import Source
from minitron_engine.errors import MinitronError
from minitron_engine.model import ModelSettings, open_model
from minitron_quant.chunks import ChunkSettings
from minitron_quant.imatrix.collect import CollectSettings, Keep, calibrate, forget
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.levels import parse_levels
from minitron_quant.measure.settings import MeasureSettings
from minitron_quant.measure.table import Row, mark_dominated, measure, relate, sort_by_size
from minitron_quant.quantize.batch import LevelResult, run
from minitron_quant.quantize.job import QuantizeSettings, model_name, prepare
from minitron_quant.quantize.journal import file_sha256, fingerprint
from minitron_quant.whole_files import write_whole

_STATE = ".minitron-run.json"
_MEASURED = ".minitron-measured.sqlite"


class Pipeline:
    """One job on its way; what is done is written down in the output folder."""

    def __init__(self, job: Job, out: Output, listener: Listener) -> None:
        self._job = job
        self._out = out
        self._listener = listener
        self._folder = job.output.directory
        self._state = State(self._folder / _STATE)

    def run(self) -> list[Row]:
        """Run the stages that are not up to date; returns the table, smallest file first."""
        with open_checkpoint_source(self._job.model.source, None, self._listener) as source:
            self._folder.mkdir(parents=True, exist_ok=True)
            full = self._convert(source)
        imatrix = self._calibrate(full)
        results = self._quantize(full, imatrix)
        rows = self._measure(full, results)
        if rows:
            write_reports(Findings(self._job, full, imatrix, rows, results), self._folder)
        return rows

    def _convert(self, source: Source) -> Path:
        outtype = self._job.model.outtype
        settings = ConvertSettings(source=source.folder, outtype=outtype, name=source.name)
        path = self._folder / plan(settings).files[0].path.name
        key = fingerprint("convert", outtype, *_stat_of(source.folder))

        def work() -> None:
            convert(replace(settings, output=path, force=True), self._listener)

        self._stage("convert", key, path, work)
        return path

    def _calibrate(self, full: Path) -> Path | None:
        section = self._job.calibration
        if not section.text:
            return None
        path = self._folder / f"{model_name(full)}.imatrix.gguf"
        texts = [file_sha256(text) for text in section.text]
        chunks = ChunkSettings(n_ctx=section.ctx, limit=section.chunks)
        key = fingerprint("imatrix", file_sha256(full), *texts, repr(chunks))

        def work() -> None:
            n_ctx = chunks.context().n_ctx
            with open_model(ModelSettings(full, n_ctx=n_ctx)) as model:
                settings = CollectSettings(section.text, chunks)
                keep = Keep(path, "if possible")
                matrix = calibrate(model, settings, self._listener, keep).matrix
            # the report travels: it names the texts, not the folders of this machine
            matrix.datasets = [text.name for text in section.text]
            write_imatrix(path, matrix)
            forget(path)

        self._stage("imatrix", key, path, work)
        return path

    def _quantize(self, full: Path, imatrix: Path | None) -> list[LevelResult]:
        levels = tuple(parse_levels(self._job.quantize.levels))
        # files of an earlier run of this job may be replaced, those of others not
        ours = self._state.get("quantize") is not None
        settings = QuantizeSettings(
            full,
            levels,
            self._folder,
            imatrix=imatrix,
            replace="outdated" if ours else "never",
        )
        batch = prepare(settings)
        self._state.put("quantize", [level.name for level in levels])
        return run(batch, self._listener)

    def _measure(self, full: Path, results: list[LevelResult]) -> list[Row]:
        section = self._job.measure
        if section.text is None:
            return []
        chunks = ChunkSettings(n_ctx=section.ctx, limit=section.chunks)
        hashes = {full: file_sha256(full)} | {result.path: result.sha256 for result in results}
        settings = MeasureSettings(
            tuple(hashes),
            section.text,
            chunks,
            reference=full if section.divergence else None,
            state=self._folder / _MEASURED,
            hashes=hashes,
        )
        rows = list(measure(settings, self._listener))
        reference = next(row for row in rows if row.model == full.name)
        return mark_dominated(sort_by_size([relate(row, reference) for row in rows]))

    def _stage(self, name: str, key: str, path: Path, work: Callable[[], None]) -> None:
        if self._state.get(name) == key and path.is_file():
            self._out.note(f"{name}: up to date")
            return
        work()
        self._state.put(name, key)


class State:
    """What a job has done, in one small file that is replaced whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            loaded = json.loads(path.read_text())
        except (OSError, ValueError):
            loaded = {}
        self._entries: dict[str, Any] = loaded if isinstance(loaded, dict) else {}

    def get(self, key: str) -> Any:
        """The entry, or None."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Record an entry durably."""
        self._entries[key] = value
        write_whole(self._path, json.dumps(self._entries))


def _stat_of(folder: Path) -> list[str]:
    """Names, sizes and times of a checkpoint's files: they change when it does."""
    if not folder.is_dir():
        return []
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]


def refuse_used_folder(job: Job) -> None:
    """Stop if the output folder holds a run already: going on with it must be asked for."""
    folder = job.output.directory
    if (folder / _STATE).exists():
        raise MinitronError(
            f"{folder} holds an earlier run",
            "--resume goes on with it; or choose another directory",
        )


def describe(job: Job) -> dict[str, str]:
    """What a run would do, stage by stage, without doing it."""
    with open_checkpoint_source(
        job.model.source, None, lambda _event: None, headers_only=True
    ) as source:
        settings = ConvertSettings(
            source=source.folder, outtype=job.model.outtype, name=source.name
        )
        planned = plan(settings)
    levels = parse_levels(job.quantize.levels)
    texts = ", ".join(str(text) for text in job.calibration.text) or "none"
    return {
        "convert": f"{job.model.source} → {planned.files[0].path.name}, {planned.bytes:,} bytes",
        "imatrix": f"calibrated on {texts}",
        "quantize": f"{len(levels)} levels: {' '.join(level.name for level in levels)}",
        "measure": f"perplexity on {job.measure.text or 'nothing'}",
        "report": f"{', '.join(job.output.report)} in {job.output.directory}",
    }

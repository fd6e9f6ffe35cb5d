"""Run a quantization: write what is missing, keep what is finished, record its inputs."""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_core.atomic_files import write_checksummed, write_whole
from minitron_core.cpu_limits import default_threads
from minitron_core.errors import MinitronError, from_os_error
from minitron_core.file_lock import exclusive
from minitron_core.gguf import TYPE
from minitron_core.hashing import file_sha256
from minitron_core.progress import Event, Progress, ignore
from minitron_quant.provenance import InputHashes, hash_inputs
from minitron_quant.quantize.encode import Errors
from minitron_quant.quantize.fallbacks import Fallback
from minitron_quant.quantize.journal import (
    NO_CHECKPOINT,
    Journal,
    JournalContent,
    read_manifest,
)
from minitron_quant.quantize.prepare import (
    LevelOutput,
    QuantizeJob,
    QuantizeSettings,
    count_types,
    folder_of,
    manifest_path,
    model_name,
    options_document,
)
from minitron_quant.quantize.write_levels import JobWriter


@dataclass(frozen=True)
class LevelResult:
    """One finished level. kept: whether it existed already; fallbacks: tensors of other types.

    path, sha256: of the file, or of the first shard. seconds: from the start of the job that made
    it; all levels are encoded side by side.
    """

    level: str
    path: Path
    bytes: int
    bits_per_weight: float
    types: dict[str, int]
    sha256: str
    seconds: float
    kept: bool
    fallbacks: tuple[Fallback, ...] = ()


def run(job: QuantizeJob, progress: Progress = ignore) -> Iterator[LevelResult]:
    """Write what is missing and yield each level when it is done, in the order of the job.

    Finished files that are up to date are kept. After Ctrl-C, a full disk or kill -9 the same call
    continues the work; other errors leave nothing behind. Levels that a caller does not iterate to
    are left to be continued. The folder is locked until the iteration ends.
    """
    folder = folder_of(job.settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder, "write") from error
    name = model_name(job.settings.source)
    journal = Journal(folder / f".{name}.quantize.journal")
    with exclusive(folder / f".{name}.quantize.lock"):
        yield from _run_locked(job, journal, progress)
        journal.remove({output.name for output in job.outputs})


def discard(settings: QuantizeSettings, names: Sequence[str]) -> None:
    """Remove finished levels by name: their files and their manifest entries."""
    path = manifest_path(settings)
    manifest = read_manifest(path)
    for name in names:
        entry = manifest.get("levels", {}).pop(name, {})
        for file in entry.get("files", []):
            (folder_of(settings) / file["name"]).unlink(missing_ok=True)
    if names and manifest:
        write_checksummed(path, manifest)


def _run_locked(job: QuantizeJob, journal: Journal, progress: Progress) -> Iterator[LevelResult]:
    manifest = read_manifest(manifest_path(job.settings))
    levels: dict[str, Any] = manifest.get("levels", {})
    there = levels if job.settings.replace != "always" else {}
    recorded = journal.read()
    started = time.monotonic()
    covariance = job.refiner.file if job.refiner else None
    with hash_inputs(job.files, job.settings.imatrix, covariance) as inputs:
        kept = [output for output in job.outputs if _up_to_date(output, there, inputs)]
        kept_names = _unchanged(job, kept, there, progress)
        left = [output for output in job.outputs if output.name not in kept_names]
        # complete but not in the manifest: the job before was killed in between
        complete = [output for output in left if _is_complete(output, recorded, job, inputs)]
        for output in complete:
            levels[output.name] = _entry(job, inputs, output, None, 0.0)
        missing = [output for output in left if output not in complete]
        _refuse_collisions(job.settings, missing)
        writer = JobWriter(job, missing, inputs, journal, recorded, progress)
        try:
            with closing(writer.run()) as written:
                for output in job.outputs:
                    if output in missing:
                        sha256 = next(written)
                        seconds = round(time.monotonic() - started, 2)
                        levels[output.name] = _entry(job, inputs, output, sha256, seconds)
                    yield _result(job, output, levels, output.name in kept_names)
        except GeneratorExit:
            _record(job, inputs, levels)
            raise
        _write_errors(job, writer.errors)
        if left:
            _record(job, inputs, levels)


def _is_complete(
    output: LevelOutput, recorded: JournalContent, job: QuantizeJob, inputs: InputHashes
) -> bool:
    done = recorded.levels.get(output.name, NO_CHECKPOINT)
    whole = done.tensors == len(job.plan.order) and _all_there(output)
    return (
        whole
        and done.made_from == inputs.fingerprint(output.recipe)
        and [file_sha256(file.path) for file in output.files] == list(done.sha256)
    )


def _up_to_date(output: LevelOutput, finished: dict[str, Any], inputs: InputHashes) -> bool:
    entry = finished.get(output.name, {})
    names = [file.path.name for file in output.files]
    return (
        [file["name"] for file in entry.get("files", [])] == names
        and _all_there(output)
        and bool(entry.get("fingerprint") == inputs.fingerprint(output.recipe))
    )


def _unchanged(
    job: QuantizeJob, kept: list[LevelOutput], finished: dict[str, Any], progress: Progress
) -> set[str]:
    """The names of finished levels whose bytes still have the manifest's hashes: all are read."""

    def check(output: LevelOutput) -> bool:
        files = finished[output.name]["files"]
        return all(
            file_sha256(file.path) == entry["sha256"]
            for file, entry in zip(output.files, files, strict=True)
        )

    names, done = set(), 0
    total = sum(output.bytes for output in kept)
    with ThreadPoolExecutor(job.settings.threads or default_threads()) as pool:
        for output, same in zip(kept, pool.map(check, kept), strict=True):
            done += output.bytes
            progress(Event("check", done, total, "bytes", output.path.name))
            names |= {output.name} if same else set()
    return names


def _all_there(output: LevelOutput) -> bool:
    return all(
        file.path.is_file() and file.path.stat().st_size == file.bytes for file in output.files
    )


def _refuse_collisions(settings: QuantizeSettings, missing: Sequence[LevelOutput]) -> None:
    existing = [output.path for output in missing if output.path.exists()]
    if existing and settings.replace == "never":
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise MinitronError(
            f"{existing[0]}{more} exists and was made from something else, or was changed",
            "--force replaces it; or choose another folder with -d",
        )


def _write_errors(job: QuantizeJob, errors: dict[str, Errors]) -> None:
    """Per tensor and type Σ w (decoded − weight)² / Σ w weight², w the importance of the column."""
    path = job.settings.errors
    if path is None or not errors:
        return  # nothing was encoded: keep the measurements of an earlier job
    relative = {
        name: {
            TYPE[ggml_type].name: error / weight
            for ggml_type, (error, weight) in sums.items()
            if weight
        }
        for name, sums in errors.items()
    }
    document = {"source": job.settings.source.name, "relative_errors": relative}
    write_whole(path, json.dumps(document, indent=1) + "\n")


def _entry(
    job: QuantizeJob,
    inputs: InputHashes,
    output: LevelOutput,
    sha256: Sequence[str] | None,
    seconds: float,
) -> dict[str, Any]:
    """The manifest entry of a level; without sha256 its files are hashed."""
    hashes = sha256 or [file_sha256(file.path) for file in output.files]
    return {
        "files": [
            {"name": file.path.name, "bytes": file.bytes, "sha256": file_hash}
            for file, file_hash in zip(output.files, hashes, strict=True)
        ],
        "seconds": seconds,
        "types": count_types(output.planned),
        "options": options_document(job.settings),
        "fingerprint": inputs.fingerprint(output.recipe),
    }


def _record(job: QuantizeJob, inputs: InputHashes, levels: dict[str, Any]) -> None:
    document = {**inputs.document, "levels": levels}
    write_checksummed(manifest_path(job.settings), document)


def _result(
    job: QuantizeJob, output: LevelOutput, levels: dict[str, Any], kept: bool
) -> LevelResult:
    entry = levels[output.name]
    return LevelResult(
        level=output.name,
        path=output.path,
        bytes=output.bytes,
        bits_per_weight=job.bits_per_weight(output),
        types=entry["types"],
        sha256=entry["files"][0]["sha256"],
        seconds=entry["seconds"],
        kept=kept,
        fallbacks=output.planned.fallbacks,
    )

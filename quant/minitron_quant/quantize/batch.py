"""The batch job: run what is planned, keep what is finished, record what was made from what."""

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_convert.gguf_file import TYPE
from minitron_engine.devices import default_threads
from minitron_engine.errors import MinitronError
from minitron_engine.progress import Progress, ignore
from minitron_quant.quantize.encode import Errors
from minitron_quant.quantize.identity import Identity, identify
from minitron_quant.quantize.job import (
    Batch,
    QuantizeSettings,
    Target,
    count_types,
    folder_of,
    manifest_path,
    model_name,
    options_document,
)
from minitron_quant.quantize.journal import (
    Journal,
    exclusive,
    file_sha256,
    read_manifest,
)
from minitron_quant.quantize.writing import Writing
from minitron_quant.whole_files import write_error, write_whole


@dataclass(frozen=True)
class LevelResult:
    """One finished level; `kept` if it was there already.

    path, sha256: of the file, or of the first shard. seconds: of the whole job, for all levels.
    """

    level: str
    path: Path
    bytes: int
    bits_per_weight: float
    types: dict[str, int]
    sha256: str
    seconds: float
    kept: bool


def run(batch: Batch, progress: Progress = ignore) -> list[LevelResult]:
    """Write what is missing; finished files that are up to date are kept.

    Ctrl-C, a full disk and kill -9 leave what is done to be continued by the same call; other
    errors leave nothing behind.
    """
    folder = folder_of(batch.settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    name = model_name(batch.settings.source)
    journal = Journal(folder / f".{name}.quantize.journal")
    with exclusive(folder / f".{name}.quantize.lock"):
        results = _run_alone(batch, journal, progress)
        journal.remove()
        return results


def discard(settings: QuantizeSettings, names: Sequence[str]) -> None:
    """Remove finished levels by name: their files, and what the manifest says of them."""
    path = manifest_path(settings)
    manifest = read_manifest(path)
    for name in names:
        entry = manifest.get("levels", {}).pop(name, {})
        for file in entry.get("files", []):
            (folder_of(settings) / file["name"]).unlink(missing_ok=True)
    if names and manifest:
        write_whole(path, json.dumps(manifest, indent=1) + "\n")


def _run_alone(batch: Batch, journal: Journal, progress: Progress) -> list[LevelResult]:
    manifest = read_manifest(manifest_path(batch.settings))
    finished = manifest.get("levels", {}) if batch.settings.replace != "always" else {}
    recorded = journal.read()
    identity = identify(batch, manifest)
    left = [target for target in batch.targets if not _up_to_date(target, finished, identity)]
    # complete but not yet in the manifest: the job before was killed in between
    whole = len(batch.plan.order)
    complete = [
        target
        for target in left
        if recorded.levels.get(target.planned.level.name) == (identity.fingerprint(target), whole)
        and _all_there(target)
    ]
    missing = [target for target in left if target not in complete]
    _refuse_collisions(batch.settings, missing)
    started = time.monotonic()
    errors = recorded.errors
    if missing:
        writing = Writing(batch, missing, identity, journal, progress)
        writing.run()
        errors = writing.errors
    _write_errors(batch, errors)
    seconds = round(time.monotonic() - started, 2)
    return _record(batch, identity, [*complete, *missing], seconds, manifest)


def _up_to_date(target: Target, finished: dict[str, Any], identity: Identity) -> bool:
    entry = finished.get(target.planned.level.name, {})
    names = [file.path.name for file in target.files]
    return (
        entry.get("fingerprint") == identity.fingerprint(target)
        and [file["name"] for file in entry.get("files", [])] == names
        and _all_there(target)
    )


def _all_there(target: Target) -> bool:
    return all(
        file.path.is_file() and file.path.stat().st_size == file.bytes for file in target.files
    )


def _refuse_collisions(settings: QuantizeSettings, missing: Sequence[Target]) -> None:
    existing = [target.path for target in missing if target.path.exists()]
    if existing and settings.replace == "never":
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise MinitronError(
            f"{existing[0]}{more} exists and was made from something else",
            "--force replaces it; or choose another folder with -d",
        )


def _write_errors(batch: Batch, errors: dict[str, Errors]) -> None:
    """Per tensor and type Σ w (decoded − weight)² / Σ w weight², w the importance of the column."""
    path = batch.settings.errors
    if path is None or not errors:
        return  # nothing was encoded: what an earlier job measured stays as it is
    relative = {
        name: {TYPE[kind].name: error / weight for kind, (error, weight) in sums.items() if weight}
        for name, sums in errors.items()
    }
    document = {"source": batch.settings.source.name, "relative_errors": relative}
    write_whole(path, json.dumps(document, indent=1) + "\n")


def _record(
    batch: Batch,
    identity: Identity,
    written: Sequence[Target],
    seconds: float,
    manifest: dict[str, Any],
) -> list[LevelResult]:
    levels: dict[str, Any] = manifest.get("levels", {})
    files = [file for target in written for file in target.files]
    with ThreadPoolExecutor(batch.settings.threads or default_threads()) as pool:
        paths = [file.path for file in files]
        sha256 = dict(zip(paths, pool.map(file_sha256, paths), strict=True))
    for target in written:
        levels[target.planned.level.name] = {
            "files": [
                {"name": file.path.name, "bytes": file.bytes, "sha256": sha256[file.path]}
                for file in target.files
            ],
            "seconds": seconds,
            "types": count_types(target.planned),
            "options": options_document(batch.settings),
            "fingerprint": identity.fingerprint(target),
        }
    if written:
        document = {**identity.document, "levels": levels}
        write_whole(manifest_path(batch.settings), json.dumps(document, indent=1) + "\n")
    return [_result(batch, target, levels, target not in written) for target in batch.targets]


def _result(batch: Batch, target: Target, levels: dict[str, Any], kept: bool) -> LevelResult:
    entry = levels[target.planned.level.name]
    return LevelResult(
        level=target.planned.level.name,
        path=target.path,
        bytes=target.bytes,
        bits_per_weight=batch.bits_per_weight(target),
        types=entry["types"],
        sha256=entry["files"][0]["sha256"],
        seconds=entry["seconds"],
        kept=kept,
    )

"""The batch job: run what is planned, keep what is finished, record what was made from what."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_core.atomic_files import write_sealed, write_whole
from minitron_core.cpu_limits import default_threads
from minitron_core.errors import MinitronError, from_os_error
from minitron_core.file_lock import exclusive
from minitron_core.gguf import TYPE
from minitron_core.hashing import file_sha256
from minitron_core.progress import Event, Progress, ignore
from minitron_quant.quantize.encode import Errors
from minitron_quant.quantize.journal import (
    NOTHING,
    Journal,
    Recorded,
    read_manifest,
)
from minitron_quant.quantize.prepare import (
    Batch,
    QuantizeSettings,
    Target,
    count_types,
    folder_of,
    manifest_path,
    model_name,
    options_document,
)
from minitron_quant.quantize.provenance import Identity, identified
from minitron_quant.quantize.write_levels import Writing


@dataclass(frozen=True)
class LevelResult:
    """One finished level; `kept` if it was there already.

    path, sha256: of the file, or of the first shard. seconds: from the start of the job that made
    it, in which all levels are encoded side by side.
    """

    level: str
    path: Path
    bytes: int
    bits_per_weight: float
    types: dict[str, int]
    sha256: str
    seconds: float
    kept: bool


Listener = Callable[[LevelResult], None]


def run(
    batch: Batch, progress: Progress = ignore, finished: Listener = lambda _: None
) -> list[LevelResult]:
    """Write what is missing; finished files that are up to date are kept.

    finished: called with each level that is written. Ctrl-C, a full disk and kill -9 leave what is
    done to be continued by the same call; other errors leave nothing behind.
    """
    folder = folder_of(batch.settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder, "write") from error
    name = model_name(batch.settings.source)
    journal = Journal(folder / f".{name}.quantize.journal")
    with exclusive(folder / f".{name}.quantize.lock"):
        results = _run_alone(batch, journal, progress, finished)
        journal.remove({target.planned.level.name for target in batch.targets})
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
        write_sealed(path, manifest)


def _run_alone(
    batch: Batch, journal: Journal, progress: Progress, finished: Listener
) -> list[LevelResult]:
    manifest = read_manifest(manifest_path(batch.settings))
    levels: dict[str, Any] = manifest.get("levels", {})
    there = levels if batch.settings.replace != "always" else {}
    recorded = journal.read()
    started = time.monotonic()
    with identified(batch) as identity:
        kept = [target for target in batch.targets if _up_to_date(target, there, identity)]
        kept = _unchanged(batch, kept, there, progress)
        left = [target for target in batch.targets if target not in kept]
        # complete but not yet in the manifest: the job before was killed in between
        complete = [target for target in left if _is_complete(target, recorded, batch, identity)]
        missing = [target for target in left if target not in complete]
        _refuse_collisions(batch.settings, missing)
        for target in complete:
            levels[target.planned.level.name] = _entry(batch, identity, target, None, 0.0)
        errors = recorded.errors
        if missing:
            writing = Writing(batch, missing, identity, journal, progress)
            for target, sha256 in writing.run():
                seconds = round(time.monotonic() - started, 2)
                entry = _entry(batch, identity, target, sha256, seconds)
                levels[target.planned.level.name] = entry
                finished(_result(batch, target, levels, kept=False))
            errors = writing.errors
        _write_errors(batch, errors)
        if left:
            _record(batch, identity, levels)
    return [_result(batch, target, levels, target not in left) for target in batch.targets]


def _is_complete(target: Target, recorded: Recorded, batch: Batch, identity: Identity) -> bool:
    done = recorded.levels.get(target.planned.level.name, NOTHING)
    whole = done.tensors == len(batch.plan.order) and _all_there(target)
    return (
        whole
        and done.made_from == identity.fingerprint(target)
        and [file_sha256(file.path) for file in target.files] == list(done.sha256)
    )


def _up_to_date(target: Target, finished: dict[str, Any], identity: Identity) -> bool:
    entry = finished.get(target.planned.level.name, {})
    names = [file.path.name for file in target.files]
    return (
        [file["name"] for file in entry.get("files", [])] == names
        and _all_there(target)
        and bool(entry.get("fingerprint") == identity.fingerprint(target))
    )


def _unchanged(
    batch: Batch, kept: list[Target], finished: dict[str, Any], progress: Progress
) -> list[Target]:
    """Those of finished targets whose bytes are still what the manifest says: all are read."""

    def check(target: Target) -> bool:
        files = finished[target.planned.level.name]["files"]
        return all(
            file_sha256(file.path) == entry["sha256"]
            for file, entry in zip(target.files, files, strict=True)
        )

    found, done = [], 0
    total = sum(target.bytes for target in kept)
    with ThreadPoolExecutor(batch.settings.threads or default_threads()) as pool:
        for target, same in zip(kept, pool.map(check, kept), strict=True):
            done += target.bytes
            progress(Event("check", done, total, "bytes", target.path.name))
            found += [target] if same else []
    return found


def _all_there(target: Target) -> bool:
    return all(
        file.path.is_file() and file.path.stat().st_size == file.bytes for file in target.files
    )


def _refuse_collisions(settings: QuantizeSettings, missing: Sequence[Target]) -> None:
    existing = [target.path for target in missing if target.path.exists()]
    if existing and settings.replace == "never":
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise MinitronError(
            f"{existing[0]}{more} exists and was made from something else, or was changed",
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


def _entry(
    batch: Batch,
    identity: Identity,
    target: Target,
    sha256: Sequence[str] | None,
    seconds: float,
) -> dict[str, Any]:
    """What the manifest says of a level; without sha256 its files are read to know."""
    hashes = sha256 or [file_sha256(file.path) for file in target.files]
    return {
        "files": [
            {"name": file.path.name, "bytes": file.bytes, "sha256": file_hash}
            for file, file_hash in zip(target.files, hashes, strict=True)
        ],
        "seconds": seconds,
        "types": count_types(target.planned),
        "options": options_document(batch.settings),
        "fingerprint": identity.fingerprint(target),
    }


def _record(batch: Batch, identity: Identity, levels: dict[str, Any]) -> None:
    document = {**identity.document, "levels": levels}
    write_sealed(manifest_path(batch.settings), document)


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

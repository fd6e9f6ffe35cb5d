"""The batch job: run what is planned, keep what is finished, record what was made from what."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_engine.errors import MinitronError
from minitron_engine.progress import Progress, ignore
from minitron_quant.quantize.job import (
    Batch,
    QuantizeSettings,
    Target,
    count_types,
    folder_of,
    manifest_path,
    model_name,
)
from minitron_quant.quantize.journal import (
    exclusive,
    file_sha256,
    read_manifest,
    write_error,
    write_whole,
)
from minitron_quant.quantize.writing import Writing


@dataclass(frozen=True)
class LevelResult:
    """One finished file; `kept` if it was there already. seconds: of the whole job, for all."""

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
    with exclusive(folder / f".{model_name(batch.settings.source)}.quantize.lock"):
        manifest = read_manifest(manifest_path(batch.settings))
        finished = manifest.get("levels", {}) if batch.settings.replace != "always" else {}
        missing = [target for target in batch.targets if not _up_to_date(target, finished)]
        _refuse_collisions(batch.settings, missing)
        started = time.monotonic()
        if missing:
            Writing(batch, missing, progress).run()
        seconds = round(time.monotonic() - started, 2)
        return _record(batch, missing, seconds, manifest)


def _up_to_date(target: Target, finished: dict[str, Any]) -> bool:
    entry = finished.get(target.planned.level.name, {})
    return (
        entry.get("fingerprint") == target.fingerprint
        and entry.get("name") == target.path.name
        and target.path.is_file()
        and target.path.stat().st_size == target.bytes
    )


def _refuse_collisions(settings: QuantizeSettings, missing: Sequence[Target]) -> None:
    existing = [target.path for target in missing if target.path.exists()]
    if existing and settings.replace == "never":
        more = f" (and {len(existing) - 1} more)" if len(existing) > 1 else ""
        raise MinitronError(
            f"{existing[0]}{more} exists and was made from something else",
            "--force replaces it; or choose another folder with -d",
        )


def _record(
    batch: Batch, written: Sequence[Target], seconds: float, manifest: dict[str, Any]
) -> list[LevelResult]:
    levels: dict[str, Any] = manifest.get("levels", {})
    for target in written:
        levels[target.planned.level.name] = {
            "name": target.path.name,
            "bytes": target.bytes,
            "sha256": file_sha256(target.path),
            "seconds": seconds,
            "types": count_types(target.planned),
            "fingerprint": target.fingerprint,
        }
    if written:
        document = {**batch.identity, "levels": levels}
        text = json.dumps(document, indent=1) + "\n"
        write_whole(manifest_path(batch.settings), text)
    return [_result(batch, target, levels, target not in written) for target in batch.targets]


def _result(batch: Batch, target: Target, levels: dict[str, Any], kept: bool) -> LevelResult:
    entry = levels[target.planned.level.name]
    return LevelResult(
        level=target.planned.level.name,
        path=target.path,
        bytes=target.bytes,
        bits_per_weight=batch.bits_per_weight(target),
        types=entry["types"],
        sha256=entry["sha256"],
        seconds=entry["seconds"],
        kept=kept,
    )

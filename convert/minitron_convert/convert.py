"""The conversion: plan, check the disk, stream the tensors into files that appear whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minitron_convert.errors import AlreadyExists, NoSpace, NotFound
from minitron_convert.gguf_file import GgufWriter
from minitron_convert.plan import ConvertSettings, Plan, PlannedFile, plan
from minitron_convert.progress import Event, Progress, ignore
from minitron_convert.stream import peak_memory, stream

__all__ = ["ConvertResult", "ConvertSettings", "Plan", "convert", "plan"]

PROGRAM_BYTES = 64 << 20
VOCABULARY_FACTOR = 12  # bytes that a parsed vocabulary takes for each of its file's


@dataclass(frozen=True)
class ConvertResult:
    """What was written (or, in a dry run, would be).

    `bytes` is the size of all `paths`, `memory` an estimate of the bytes of memory it takes.
    """

    paths: tuple[Path, ...]
    model_name: str
    architecture: str
    outtype: str
    tensors: int
    bytes: int
    memory: int
    notes: tuple[str, ...]
    dry_run: bool


def convert(settings: ConvertSettings, progress: Progress | None = None) -> ConvertResult:
    """Convert a checkpoint to GGUF.

    Errors: NotFound, Unsupported, AlreadyExists, NoSpace, Denied, Damaged; then nothing is left.
    """
    planned = plan(settings)
    paths = tuple(file.path for file in planned.files)
    if not settings.dry_run:
        _check_output(planned, settings.force)
        _write(planned, progress or ignore)
    return ConvertResult(
        paths=paths,
        model_name=planned.model_name,
        architecture=planned.architecture,
        outtype=planned.outtype,
        tensors=len(planned.tensors),
        bytes=planned.bytes,
        memory=_estimate_memory(settings.source, planned),
        notes=planned.notes,
        dry_run=settings.dry_run,
    )


def _estimate_memory(source: Path, planned: Plan) -> int:
    tokenizers = (source / "tokenizer.json", source / "tokenizer.model")
    vocabulary = sum(path.stat().st_size for path in tokenizers if path.is_file())
    tensors = [tensor for file in planned.files for tensor in file.tensors]
    return PROGRAM_BYTES + VOCABULARY_FACTOR * vocabulary + peak_memory(tensors)


def _check_output(planned: Plan, force: bool) -> None:
    folder = planned.files[0].path.parent
    if not folder.is_dir():
        raise NotFound(f"The output folder {folder} does not exist.", "Create it first.")
    for file in planned.files:
        if file.path.exists() and not force:
            raise AlreadyExists(f"{file.path} exists already.", "Use --force to replace it.")
    free = shutil.disk_usage(folder).free
    if free < planned.bytes:
        raise NoSpace(
            f"{folder} has {free} bytes free; the output needs {planned.bytes}.",
            "Free some space or choose another folder.",
        )


def _write(planned: Plan, progress: Progress) -> None:
    done = 0
    total = sum(tensor.nbytes for tensor in planned.tensors)
    written: list[Path] = []
    with _removed_on_failure(written):
        for file in planned.files:
            done = _write_file(file, progress, done, total)
            written.append(file.path)


def _write_file(file: PlannedFile, progress: Progress, done: int, total: int) -> int:
    with GgufWriter(file.path, file.metadata, [t.spec for t in file.tensors]) as writer:
        for piece in stream(file.tensors):
            writer.write(piece.data)
            done += piece.data.nbytes
            progress(Event("convert", done, total, "bytes", piece.tensor.spec.name))
    return done


@contextmanager
def _removed_on_failure(written: list[Path]) -> Iterator[None]:
    """Some shards of a model are worth nothing: on failure those finished go too."""
    try:
        yield
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise

"""The conversion: plan, check the disk, stream the tensors into files that appear whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minitron_convert.encode_stream import Piece, peak_memory, stream
from minitron_convert.plan import ConvertSettings, Plan, PlannedFile, PlannedTensor, plan
from minitron_core.errors import AlreadyExists, NotFound, OutOfResources
from minitron_core.gguf import GgufWriter
from minitron_core.progress import Event, Progress, ignore

__all__ = [
    "ConvertResult",
    "ConvertSettings",
    "Encoder",
    "Plan",
    "convert",
    "plan",
    "write_plan",
]

PROGRAM_BYTES = 64 << 20
VOCABULARY_FACTOR = 12  # bytes that a parsed vocabulary takes for each of its file's


@dataclass(frozen=True)
class ConvertResult:
    """What was written (or, in a dry run, would be; `kept`: was there, made from the same).

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
    planned: Plan
    kept: bool = False


class Encoder(NamedTuple):
    """What makes pieces of tensors, in order, and the bytes of memory that it holds at its peak."""

    stream: Callable[[Sequence[PlannedTensor]], Iterator[Piece]]
    memory: int


def convert(settings: ConvertSettings, progress: Progress | None = None) -> ConvertResult:
    """Convert a checkpoint to GGUF.

    Errors: NotFound, Unsupported, AlreadyExists, OutOfResources, Denied, Damaged; no file is
    left then.
    """
    planned = plan(settings)
    tensors = [tensor for file in planned.files for tensor in file.tensors]
    return write_plan(settings, planned, Encoder(stream, peak_memory(tensors)), progress)


def write_plan(
    settings: ConvertSettings, planned: Plan, encoder: Encoder, progress: Progress | None = None
) -> ConvertResult:
    """Write the files of a plan with the pieces that `encoder` makes. Errors as convert()."""
    if not settings.dry_run:
        _check_output(planned, settings.force)
        _write(planned, encoder, progress or ignore)
    return ConvertResult(
        paths=tuple(file.path for file in planned.files),
        model_name=planned.model_name,
        architecture=planned.architecture,
        outtype=planned.outtype,
        tensors=len(planned.tensors),
        bytes=planned.bytes,
        memory=PROGRAM_BYTES + _vocabulary_memory(settings.source) + encoder.memory,
        notes=planned.notes,
        dry_run=settings.dry_run,
        planned=planned,
    )


def _vocabulary_memory(source: Path) -> int:
    tokenizers = (source / "tokenizer.json", source / "tokenizer.model")
    return VOCABULARY_FACTOR * sum(path.stat().st_size for path in tokenizers if path.is_file())


def _check_output(planned: Plan, force: bool) -> None:
    folder = planned.files[0].path.parent
    if not folder.is_dir():
        raise NotFound(f"the output folder {folder} does not exist", "create it first")
    for file in planned.files:
        if file.path.exists() and not force:
            raise AlreadyExists(f"{file.path} already exists", "use --force to replace it")
    free = shutil.disk_usage(folder).free
    if free < planned.bytes:
        raise OutOfResources(
            f"{folder} has {free} bytes free; the output needs {planned.bytes}",
            "free some space or choose another folder",
        )


def _write(planned: Plan, encoder: Encoder, progress: Progress) -> None:
    done = 0
    total = sum(tensor.nbytes for tensor in planned.tensors)
    written: list[Path] = []
    with _removed_on_failure(written):
        for file in planned.files:
            done = _write_file(file, encoder, progress, done, total)
            written.append(file.path)


def _write_file(
    file: PlannedFile, encoder: Encoder, progress: Progress, done: int, total: int
) -> int:
    with GgufWriter(file.path, file.metadata, [t.spec for t in file.tensors]) as writer:
        for piece in encoder.stream(file.tensors):
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

"""The loop over tensors: encode ahead, and write the blocks to every level's files in order."""

import shutil
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from minitron_core.cpu_limits import default_threads
from minitron_core.errors import MinitronError, OutOfResources
from minitron_core.gguf import row_bytes
from minitron_core.progress import Event, Progress
from minitron_quant.array_backend import Bytes
from minitron_quant.provenance import InputHashes
from minitron_quant.quantize.encode import (
    ColumnErrors,
    EncodeTask,
    Errors,
    Slab,
    add_errors,
    encode,
)
from minitron_quant.quantize.journal import NO_CHECKPOINT, Checkpoint, Journal, JournalContent
from minitron_quant.quantize.level_files import LevelFiles
from minitron_quant.quantize.prepare import LevelOutput, QuantizeJob, folder_of

# weights that are read before the memory that they fill is given back
_RELEASE_ELEMENTS = 1 << 26


class JobWriter:
    """Writes the files of a job side by side, tensor by tensor.

    errors: by tensor and type, of the tensors that are done.
    """

    def __init__(
        self,
        job: QuantizeJob,
        outputs: Sequence[LevelOutput],
        inputs: InputHashes,
        journal: Journal,
        recorded: JournalContent,
        progress: Progress,
    ) -> None:
        self._job = job
        self._outputs = outputs
        self._progress = progress
        self._order = {name: index for index, name in enumerate(job.plan.order)}
        self._threads = job.settings.threads or default_threads()
        self.errors: dict[str, Errors] = recorded.errors
        self._tensor_errors: Errors = {}
        self._chosen = job.level_codes.names if job.level_codes else ()
        self._checkpoints = [self._resumable(output, inputs, recorded) for output in outputs]
        # by level: tensors, and bytes of the one after them
        self._done = [(done.tensors, done.bytes) for done in self._checkpoints]
        self._files = LevelFiles(outputs, inputs, journal, recorded, self._threads)

    def run(self) -> Generator[list[str]]:
        """Write all files; yield the SHA-256 of each level's files as they appear, in order.

        Ctrl-C and a full disk leave what is done to be continued; other errors leave nothing.
        """
        self._check_disk()
        try:
            before = list(map(_version, self._job.files))
            self._done = self._files.open(self._checkpoints)
            self._write()
            self._refuse_changes(before)
            # between the renames and the manifest only the journal knows what files were made from
            self._files.commit(self.errors)
        except BaseException as error:
            kept = self._files.stop(_can_continue(error), self.errors)
            if kept:
                error.add_note(self._kept())
            raise
        yield from self._files.finish()

    def _kept(self) -> str:
        done, of = self._files.least_tensors(), len(self._order)
        levels = (
            self._outputs[0].name if len(self._outputs) == 1 else f"{len(self._outputs)} levels"
        )
        return f"{done} of {of} tensors of {levels} are kept in {folder_of(self._job.settings)}"

    def _refuse_changes(self, before: Sequence[tuple[int, ...] | None]) -> None:
        for path, version in zip(self._job.files, before, strict=True):
            # one that was removed has been read to its end all the same
            if _version(path) not in (version, None):
                raise MinitronError(
                    f"{path} was changed while it was read",
                    "run it again once it is complete",
                )

    def _resumable(
        self, output: LevelOutput, inputs: InputHashes, recorded: JournalContent
    ) -> Checkpoint:
        """How far an interrupted run got with a level."""
        done = recorded.levels.get(output.name, NO_CHECKPOINT)
        partials = (file.path.with_name(f".{file.path.name}.partial") for file in output.files)
        possible = done != NO_CHECKPOINT and all(map(Path.is_file, partials))
        possible = possible and done.tensors <= len(self._order)
        same = possible and done.made_from == inputs.fingerprint(output.recipe)
        return done if same else NO_CHECKPOINT

    def _check_disk(self) -> None:
        folder = folder_of(self._job.settings)
        needed = 0
        for output, (done, _) in zip(self._outputs, self._done, strict=True):
            specs = self._job.plan.specs(output.planned)
            needed += output.bytes - sum(spec.nbytes for spec in specs[:done])
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OutOfResources(
                f"{folder} has {free / 1e6:,.0f} MB free, and the files need {needed / 1e6:,.0f}",
                "free some space, choose another folder with -d, or fewer levels",
            )

    def _tasks(self) -> Iterator[EncodeTask]:
        measure, refiner = self._job.settings.errors is not None, self._job.refiner
        for name in self._order:
            there = self._rows_there(name)
            types = {
                output.planned.types[name]: None
                for output, rows in zip(self._outputs, there, strict=True)
                if rows is not None
            }
            if types:
                # errors are of all rows
                first = 0 if measure else min(rows for rows in there if rows is not None)
                if name in self._chosen:
                    types = {}  # the codes are there, others at each level
                _, info = self._job.plan.tensors[name]
                weights = self._job.weights.get(name)
                metric = ColumnErrors(weights) if measure else None
                refine = refiner.of(name) if refiner else None
                rows = refiner.rows if refiner else 0
                data = self._job.data(name)
                yield EncodeTask(info, data, tuple(types), weights, metric, refine, rows, first)

    def _rows_there(self, name: str) -> list[int | None]:
        """How many rows of a tensor each level has from an earlier run; None: all of it."""
        index, (_, info) = self._order[name], self._job.plan.tensors[name]
        found: list[int | None] = []
        for output, (tensors, size) in zip(self._outputs, self._done, strict=True):
            row = row_bytes(output.planned.types[name], info.shape[0])
            rows = size // row if tensors == index else 0
            found.append(None if tensors > index else rows)
        return found

    def _write(self) -> None:
        total = sum(task.elements * max(1, len(task.types)) for task in self._tasks())
        done = read = 0
        for slab in encode(self._tasks(), self._threads):
            self._write_slab(slab)
            done += slab.elements * max(1, len(slab.blocks))
            read += slab.elements
            self._progress(Event("quantize", done, total, "weights", slab.task.info.name))
            if read >= _RELEASE_ELEMENTS:
                read = 0
                for shard in self._job.shards:
                    shard.release()
        refiner = self._job.refiner
        if refiner is not None and refiner.warning:
            self._progress(Event("quantize", done, total, "weights", note=refiner.warning))

    def _write_slab(self, slab: Slab) -> None:
        name = slab.task.info.name
        self._files.write(
            [
                None if rows is None else self._blocks(output, slab, max(0, rows - slab.first))
                for output, rows in zip(self._outputs, self._rows_there(name), strict=True)
            ]
        )
        add_errors(self._tensor_errors, slab.errors)
        if slab.last and self._tensor_errors:
            self.errors.setdefault(name, {}).update(self._tensor_errors)
            self._tensor_errors = {}
        self._files.commit_if_due(self.errors)

    def _blocks(self, output: LevelOutput, slab: Slab, there: int) -> Bytes | None:
        """The rows of a slab as a level has them, less the first ones, which are there."""
        info, chosen = slab.task.info, self._job.level_codes
        ggml_type = output.planned.types[info.name]
        size, rows = row_bytes(ggml_type, info.shape[0]), slab.elements // max(info.shape[0], 1)
        if there >= rows > 0:
            return None
        if chosen is None or info.name not in self._chosen:
            return slab.blocks[ggml_type].reshape(-1)[there * size :]
        first = (slab.first + there) * size
        return chosen.read(output.name, info.name, first, (rows - there) * size)


def _version(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _can_continue(error: BaseException) -> bool:
    # Ctrl-C, or a full disk
    return not isinstance(error, Exception) or isinstance(error, OutOfResources)

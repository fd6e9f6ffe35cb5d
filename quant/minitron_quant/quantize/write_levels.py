"""The loop over tensors: encode ahead, and give every level's files what they lack, in order."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from minitron_core.cpu_limits import default_threads
from minitron_core.errors import MinitronError, OutOfResources
from minitron_core.gguf import Gguf
from minitron_core.progress import Event, Progress
from minitron_quant.quantize.encode import ColumnErrors, Errors, Job, Slab, add_errors, encode
from minitron_quant.quantize.journal import NOTHING, Done, Journal, Recorded
from minitron_quant.quantize.level_files import LevelFiles
from minitron_quant.quantize.prepare import Batch, Target, folder_of
from minitron_quant.quantize.provenance import Identity

# weights that are read before the memory that they fill is given back
_RELEASE_ELEMENTS = 1 << 26


class Writing:
    """The files of one job while they are written, side by side, tensor after tensor.

    errors: what was measured on the tensors that are done, by type.
    """

    def __init__(
        self,
        batch: Batch,
        targets: Sequence[Target],
        identity: Identity,
        journal: Journal,
        progress: Progress,
    ) -> None:
        self._batch = batch
        self._targets = targets
        self._progress = progress
        self._order = {name: index for index, name in enumerate(batch.plan.order)}
        self._threads = batch.settings.threads or default_threads()
        recorded = journal.read()
        self.errors: dict[str, Errors] = recorded.errors
        self._tensor_errors: Errors = {}
        self._found = [self._resumable(target, identity, recorded) for target in targets]
        self._there = [done.tensors for done in self._found]
        self._files = LevelFiles(targets, identity, journal, recorded, self._threads)

    def run(self) -> Iterator[tuple[Target, list[str]]]:
        """Write all files; gives each level with its files' SHA-256 as they appear.

        Ctrl-C and a full disk leave what is done to be continued; other errors leave nothing.
        """
        self._check_disk()
        try:
            before = list(map(_version, self._batch.shards))
            self._there = self._files.open(self._found)
            self._write()
            self._refuse_changes(before)
            # between the renames and the manifest the journal is what tells whose files these are
            self._files.commit(self.errors)
        except BaseException as error:
            self._files.stop(_can_continue(error), self.errors)
            raise
        yield from self._files.finish()

    def _refuse_changes(self, before: Sequence[tuple[int, ...] | None]) -> None:
        for shard, version in zip(self._batch.shards, before, strict=True):
            # one that was removed has been read to its end all the same
            if _version(shard) not in (version, None):
                raise MinitronError(
                    f"{shard.path} was changed while it was read",
                    "run it again once it is complete",
                )

    def _resumable(self, target: Target, identity: Identity, recorded: Recorded) -> Done:
        """What is there already of a target, from an interrupted run."""
        done = recorded.levels.get(target.planned.level.name, NOTHING)
        partials = (file.path.with_name(f".{file.path.name}.partial") for file in target.files)
        possible = 0 < done.tensors <= len(self._order) and all(map(Path.is_file, partials))
        return done if possible and done.made_from == identity.fingerprint(target) else NOTHING

    def _check_disk(self) -> None:
        folder = folder_of(self._batch.settings)
        needed = 0
        for target, done in zip(self._targets, self._there, strict=True):
            specs = self._batch.plan.specs(target.planned)
            needed += target.bytes - sum(spec.nbytes for spec in specs[:done])
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OutOfResources(
                f"{folder} has {free / 1e6:,.0f} MB free, and the files need {needed / 1e6:,.0f}",
                "free some space, choose another folder with -d, or fewer levels",
            )

    def _jobs(self) -> Iterator[Job]:
        measure = self._batch.settings.errors is not None
        for name, index in self._order.items():
            types = {
                target.planned.types[name]: None
                for target, done in zip(self._targets, self._there, strict=True)
                if done <= index
            }
            if types:
                shard, info = self._batch.plan.tensors[name]
                weights = self._batch.weights.get(name)
                metric = ColumnErrors(weights) if measure else None
                feedback = self._batch.feedback if self._batch.settings.refine else None
                refine = feedback.of(name) if feedback else None
                rows = feedback.arrays.rows if feedback else 0
                yield Job(info, shard.data(info), tuple(types), weights, metric, refine, rows)

    def _write(self) -> None:
        total = sum(job.info.n_elements * len(job.types) for job in self._jobs())
        done = read = 0
        for slab in encode(self._jobs(), self._threads):
            self._write_slab(slab)
            done += slab.elements * len(slab.blocks)
            read += slab.elements
            self._progress(Event("quantize", done, total, "weights", slab.job.info.name))
            if read >= _RELEASE_ELEMENTS:
                read = 0
                for shard in self._batch.shards:
                    shard.release()
        feedback = self._batch.feedback
        if feedback is not None and feedback.raised:
            self._progress(Event("quantize", done, total, "weights", note=feedback.raised))

    def _write_slab(self, slab: Slab) -> None:
        name = slab.job.info.name
        index = self._order[name]
        self._files.write(
            [
                slab.blocks[target.planned.types[name]] if done <= index else None
                for target, done in zip(self._targets, self._there, strict=True)
            ]
        )
        add_errors(self._tensor_errors, slab.errors)
        if slab.last:
            if self._tensor_errors:
                self.errors.setdefault(name, {}).update(self._tensor_errors)
                self._tensor_errors = {}
            self._files.commit_now_and_then(self.errors)


def _version(shard: Gguf) -> tuple[int, ...] | None:
    try:
        found = shard.path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _can_continue(error: BaseException) -> bool:
    # Ctrl-C, or a full disk, which its exit code tells whichever package met it
    interrupted = not isinstance(error, Exception)
    return interrupted or getattr(error, "exit_code", None) == OutOfResources.exit_code

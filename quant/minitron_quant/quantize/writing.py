"""The loop over tensors: encode ahead, write every level's file in order, keep the journal."""

import shutil
import time
from collections.abc import Iterator, Sequence

from minitron_engine.devices import default_threads
from minitron_engine.errors import OutOfResources
from minitron_engine.progress import Event, Progress
from minitron_quant.quantize.encode import ColumnErrors, Errors, Job, Slab, add_errors, encode
from minitron_quant.quantize.identity import Identity
from minitron_quant.quantize.job import Batch, Target, folder_of
from minitron_quant.quantize.journal import Journal, Recorded
from minitron_quant.quantize.level_writer import LevelWriter

# the journal is brought up to date at the first tensor's end after this many seconds of work
_COMMIT_SECONDS = 2.0


class Writing:
    """The files of one job while they are written, side by side, tensor after tensor."""

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
        self._fingerprints = [identity.fingerprint(target) for target in targets]
        self._progress = progress
        self._order = batch.plan.order
        self._journal = journal
        self._writers: list[LevelWriter] = []
        self._committed = time.monotonic()
        recorded = journal.read()
        self.errors: dict[str, Errors] = recorded.errors
        self._tensor_errors: Errors = {}
        self._there = [
            self._resumable(target, made_from, recorded)
            for target, made_from in zip(targets, self._fingerprints, strict=True)
        ]

    def run(self) -> None:
        """Write all files; the journal then says that they are complete.

        Ctrl-C and a full disk leave what is done to be continued; other errors leave nothing.
        """
        self._check_disk()
        try:
            for target, done in zip(self._targets, self._there, strict=True):
                self._writers.append(LevelWriter(target, done))
            self._write()
            # between the renames and the manifest the journal is what tells whose files these are
            self._commit()
        except BaseException as error:
            self._stop(keep=_can_continue(error))
            raise
        for writer in self._writers:
            writer.finish()

    def _resumable(self, target: Target, made_from: str, recorded: Recorded) -> int:
        """How many tensors of a target are there already, from an interrupted run."""
        recorded_from, tensors = recorded.levels.get(target.planned.level.name, ("", 0))
        partials = (file.path.with_name(f".{file.path.name}.partial") for file in target.files)
        fits = recorded_from == made_from and 0 < tensors <= len(self._order)
        return tensors if fits and all(partial.is_file() for partial in partials) else 0

    def _check_disk(self) -> None:
        folder = folder_of(self._batch.settings)
        needed = 0
        for target, done in zip(self._targets, self._there, strict=True):
            specs = self._batch.plan.specs(target.planned)
            needed += target.bytes - sum(spec.nbytes for spec in specs[:done])
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OutOfResources(
                f"{folder} has {free / 1e9:.1f} GB free, and the files need {needed / 1e9:.1f} GB",
                "free some space, choose another folder with -d, or fewer levels",
            )

    def _jobs(self) -> Iterator[Job]:
        measure = self._batch.settings.errors is not None
        for index, name in enumerate(self._order):
            types = {
                target.planned.types[name]: None
                for target, done in zip(self._targets, self._there, strict=True)
                if done <= index
            }
            if types:
                shard, info = self._batch.plan.tensors[name]
                weights = self._batch.weights.get(name)
                metric = ColumnErrors(weights) if measure else None
                refine = self._batch.feedback.of(name) if self._batch.feedback else None
                yield Job(info, shard.data(info), tuple(types), weights, metric, refine)

    def _write(self) -> None:
        total = sum(job.info.n_elements * len(job.types) for job in self._jobs())
        done = 0
        threads = self._batch.settings.threads or default_threads()
        for slab in encode(self._jobs(), threads):
            self._write_slab(slab)
            done += slab.elements * len(slab.blocks)
            self._progress(Event("quantize", done, total, "weights", slab.job.info.name))
            if slab.last and time.monotonic() - self._committed >= _COMMIT_SECONDS:
                self._commit()

    def _write_slab(self, slab: Slab) -> None:
        name = slab.job.info.name
        index = self._order.index(name)
        add_errors(self._tensor_errors, slab.errors)
        if slab.last and self._tensor_errors:
            self.errors.setdefault(name, {}).update(self._tensor_errors)
            self._tensor_errors = {}
        for target, writer in zip(self._targets, self._writers, strict=True):
            if writer.tensors_written <= index:
                writer.write(slab.blocks[target.planned.types[name]])

    def _commit(self) -> None:
        for writer in self._writers:
            writer.sync()
        levels = {
            target.planned.level.name: (made_from, writer.tensors_written)
            for target, made_from, writer in zip(
                self._targets, self._fingerprints, self._writers, strict=True
            )
        }
        self._journal.write(Recorded(levels, self.errors))
        self._committed = time.monotonic()

    def _stop(self, keep: bool) -> None:
        if keep and len(self._writers) == len(self._targets):
            try:
                self._commit()
            except Exception:
                # a disk too full for the journal: the one written before still holds
                keep = self._journal.path.is_file()
        for writer in self._writers:
            if keep:
                writer.close()
            else:
                writer.abort()
        if not keep:
            self._journal.remove()


def _can_continue(error: BaseException) -> bool:
    # Ctrl-C, or a full disk, which its exit code tells whichever package met it
    interrupted = not isinstance(error, Exception)
    return interrupted or getattr(error, "exit_code", None) == OutOfResources.exit_code

"""The loop over tensors: encode ahead, write every level's file in order, keep the journal."""

import shutil
import time
from collections.abc import Iterator, Sequence

from minitron_convert.gguf_file import GgufWriter
from minitron_engine.devices import default_threads
from minitron_engine.errors import OutOfResources
from minitron_engine.progress import Event, Progress
from minitron_quant.quantize.encode import Job, Slab, encode
from minitron_quant.quantize.job import Batch, Target, folder_of, model_name
from minitron_quant.quantize.journal import Journal

# the journal is brought up to date at the first tensor's end after this many seconds of work
_COMMIT_SECONDS = 2.0


class Writing:
    """The files of one job while they are written, side by side, tensor after tensor."""

    def __init__(self, batch: Batch, targets: Sequence[Target], progress: Progress) -> None:
        self._batch = batch
        self._targets = targets
        self._progress = progress
        self._order = batch.plan.order
        name = model_name(batch.settings.source)
        self._journal = Journal(folder_of(batch.settings) / f".{name}.quantize.journal")
        self._writers: list[GgufWriter] = []
        self._committed = time.monotonic()

    def run(self) -> None:
        """Write all files.

        Ctrl-C and a full disk leave what is done to be continued; other errors leave nothing.
        """
        recorded = self._resumable()
        self._check_disk(recorded)
        try:
            for target, done in zip(self._targets, recorded, strict=True):
                self._writers.append(
                    GgufWriter(
                        target.path,
                        target.metadata,
                        self._batch.plan.specs(target.planned),
                        resume_tensors=done,
                    )
                )
            self._write(recorded)
        except BaseException as error:
            self._stop(keep=_can_continue(error))
            raise
        for writer in self._writers:
            writer.finish()
        self._journal.remove()

    def _resumable(self) -> list[int]:
        """How many tensors of each target are there already, from an interrupted run."""
        entries = self._journal.read()
        done = []
        for target in self._targets:
            made_from, tensors = entries.get(target.planned.level.name, ("", 0))
            partial = target.path.with_name(f".{target.path.name}.partial")
            fits = made_from == target.fingerprint and 0 < tensors <= len(self._order)
            done.append(tensors if fits and partial.is_file() else 0)
        return done

    def _check_disk(self, recorded: Sequence[int]) -> None:
        folder = folder_of(self._batch.settings)
        there = 0
        for target, done in zip(self._targets, recorded, strict=True):
            partial = target.path.with_name(f".{target.path.name}.partial")
            there += partial.stat().st_size if done else 0
        needed = sum(target.bytes for target in self._targets) - there
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OutOfResources(
                f"{folder} has {free / 1e9:.1f} GB free, and the files need {needed / 1e9:.1f} GB",
                "free some space, choose another folder with -d, or fewer levels",
            )

    def _jobs(self, recorded: Sequence[int]) -> Iterator[Job]:
        for index, name in enumerate(self._order):
            types = {
                target.planned.types[name]: None
                for target, done in zip(self._targets, recorded, strict=True)
                if done <= index
            }
            if types:
                shard, info = self._batch.plan.tensors[name]
                weights = self._batch.weights.get(name)
                yield Job(info, shard.data(info), tuple(types), weights)

    def _write(self, recorded: Sequence[int]) -> None:
        total = sum(job.info.n_elements * len(job.types) for job in self._jobs(recorded))
        done = 0
        threads = self._batch.settings.threads or default_threads()
        for slab in encode(self._jobs(recorded), threads):
            self._write_slab(slab)
            done += slab.elements * len(slab.blocks)
            self._progress(Event("quantize", done, total, "weights", slab.job.info.name))
            if slab.last and time.monotonic() - self._committed >= _COMMIT_SECONDS:
                self._commit()

    def _write_slab(self, slab: Slab) -> None:
        name = slab.job.info.name
        index = self._order.index(name)
        for target, writer in zip(self._targets, self._writers, strict=True):
            if writer.tensors_written <= index:
                writer.write(slab.blocks[target.planned.types[name]].data)

    def _commit(self) -> None:
        for writer in self._writers:
            writer.sync()
        self._journal.write(
            {
                target.planned.level.name: (target.fingerprint, writer.tensors_written)
                for target, writer in zip(self._targets, self._writers, strict=True)
            }
        )
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

"""All files of a job while they are written: side by side, in threads, the journal behind them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy

from minitron_engine.process import interrupts
from minitron_quant.quantize.encode import Bytes, Errors
from minitron_quant.quantize.journal import Done, Journal, Recorded
from minitron_quant.quantize.level_writer import LevelWriter, open_level
from minitron_quant.quantize.prepare import Target
from minitron_quant.quantize.provenance import Identity

# the journal is brought up to date after this many seconds of work
_COMMIT_SECONDS = 2.0


class LevelFiles:
    """The levels' files. Only a disk that cannot follow keeps the encoders waiting.

    recorded: what the journal of an earlier run says.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        identity: Identity,
        journal: Journal,
        recorded: Recorded,
        threads: int,
    ) -> None:
        self._targets = targets
        self._names = {target.planned.level.name for target in targets}
        # what another job has left unfinished stays in the journal
        self._others = {k: done for k, done in recorded.levels.items() if k not in self._names}
        self._identity = identity
        self._journal = journal
        # one more, because bringing files to the disk takes a thread's time, but no processor's
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="write")
        self._opening: list[Future[LevelWriter]] = []
        self._writers: list[LevelWriter] = []
        self._writing: list[Future[None]] = []
        self._committing: Future[None] | None = None
        self._committed = time.monotonic()

    def open(self, there: Sequence[Done]) -> list[int]:
        """Begin every level's files, or go on with them; gives the tensors that they have each."""
        # a thread whose start is interrupted is one that the pool does not know
        with interrupts.deferred():
            for target, done in zip(self._targets, there, strict=True):
                self._opening.append(self._pool.submit(open_level, target, done))
        wait(self._opening)
        self._writers = [opened.result() for opened in self._opening]
        return self._counts()

    def write(self, blocks: Sequence[Bytes | None]) -> None:
        """Append bytes to the current tensor of each level; None for a level that has them.

        They are written while the next are encoded; an error is raised by the next call.
        """
        self._settle()
        self._writing = [
            self._pool.submit(writer.write, data)
            for writer, data in zip(self._writers, blocks, strict=True)
            if data is not None
        ]

    def _settle(self) -> None:
        """Wait for what is being written: a level's bytes come in order."""
        for writing in self._writing:
            writing.result()
        self._writing = []

    def commit_now_and_then(self, errors: Mapping[str, Errors]) -> None:
        """Bring what was written to the disk and say so in the journal, meanwhile."""
        busy = self._committing is not None and not self._committing.done()
        if busy or time.monotonic() - self._committed < _COMMIT_SECONDS:
            return
        self._settle_commit()
        self._settle()
        self._committed = time.monotonic()
        self._committing = self._pool.submit(self._commit, self._done(), deepcopy(errors))

    def commit(self, errors: Mapping[str, Errors]) -> None:
        """The same, and wait for it."""
        self._settle_commit()
        self._settle()
        self._commit(self._done(), errors)

    def _settle_commit(self) -> None:
        if self._committing is not None:
            self._committing.result()

    def _counts(self) -> list[int]:
        return [writer.tensors_written for writer in self._writers]

    def _done(self) -> dict[str, Done]:
        return {
            target.planned.level.name: Done(
                self._identity.fingerprint(target), writer.tensors_written, writer.sha256
            )
            for target, writer in zip(self._targets, self._writers, strict=True)
        }

    def _commit(self, done: Mapping[str, Done], errors: Mapping[str, Errors]) -> None:
        # only what is on the disk may be in the journal, whatever happens next
        for writer in self._writers:
            writer.sync()
        self._journal.write(Recorded({**self._others, **done}, dict(errors)))

    def finish(self) -> Iterator[tuple[Target, list[str]]]:
        """Complete the files, level by level; gives the SHA-256 of each level's files."""
        self._pool.shutdown()
        for target, writer in zip(self._targets, self._writers, strict=True):
            yield target, writer.finish()

    def stop(self, keep: bool, errors: Mapping[str, Errors]) -> None:
        """Leave what is done to be continued, or nothing."""
        self._pool.shutdown()
        # where opening was interrupted, or one of them failed
        self._writers = [opened.result() for opened in self._opening if not opened.exception()]
        if keep and len(self._writers) == len(self._targets):
            try:
                self._commit(self._done(), errors)
            except Exception:
                # a disk too full for the journal: the one written before still holds
                keep = self._journal.path.is_file()
        for writer in self._writers:
            if keep:
                writer.close()
            else:
                writer.abort()
        if not keep:
            self._journal.remove(self._names)

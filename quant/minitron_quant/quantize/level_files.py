"""The files of all levels while they are written: side by side, in threads, with a journal."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import deepcopy

from minitron_engine.process import interrupts
from minitron_quant.array_backend import Bytes
from minitron_quant.provenance import InputHashes
from minitron_quant.quantize.encode import Errors
from minitron_quant.quantize.journal import Checkpoint, Journal, JournalContent
from minitron_quant.quantize.level_writer import LevelWriter, open_level
from minitron_quant.quantize.prepare import LevelOutput

# the journal is brought up to date after this many seconds of work
_COMMIT_SECONDS = 2.0
# what a stop waits for the hashes of the inputs, without which nothing can be continued
_HASH_SECONDS = 1.0


class LevelFiles:
    """The levels' files; encoders wait for them only where the disk is slower.

    recorded: the journal of an earlier run.
    """

    def __init__(
        self,
        outputs: Sequence[LevelOutput],
        inputs: InputHashes,
        journal: Journal,
        recorded: JournalContent,
        threads: int,
    ) -> None:
        self._outputs = outputs
        self._names = {output.name for output in outputs}
        # levels that another job left unfinished stay in the journal
        self._others = {k: done for k, done in recorded.levels.items() if k not in self._names}
        self._inputs = inputs
        self._journal = journal
        # one more, because bringing files to the disk takes a thread's time, but no processor's
        self._pool = ThreadPoolExecutor(threads + 1, thread_name_prefix="write")
        self._opening: list[Future[LevelWriter]] = []
        self._writers: list[LevelWriter] = []
        self._writing: list[Future[None]] = []
        self._committing: Future[None] | None = None
        self._committed = time.monotonic()

    def open(self, checkpoints: Sequence[Checkpoint]) -> list[tuple[int, int]]:
        """Begin or continue the files of every level.

        Returns how many tensors each has, and how many bytes of the tensor after them.
        """
        # a thread whose start is interrupted is one that the pool does not know
        with interrupts.deferred():
            for output, done in zip(self._outputs, checkpoints, strict=True):
                self._opening.append(self._pool.submit(open_level, output, done))
        wait(self._opening)
        self._writers = [opened.result() for opened in self._opening]
        return [(writer.tensors_written, writer.bytes_written) for writer in self._writers]

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

    def commit_if_due(self, errors: Mapping[str, Errors]) -> None:
        """Every few seconds flush the files and update the journal, in the background."""
        busy = self._committing is not None and not self._committing.done()
        if busy or time.monotonic() - self._committed < _COMMIT_SECONDS:
            return
        self._settle_commit()
        self._settle()
        self._committed = time.monotonic()
        self._committing = self._pool.submit(self._commit, self._done(), deepcopy(errors))

    def commit(self, errors: Mapping[str, Errors]) -> None:
        """Flush the files and update the journal."""
        self._settle_commit()
        self._settle()
        self._commit(self._done(), errors)

    def _settle_commit(self) -> None:
        if self._committing is not None:
            self._committing.result()

    def least_tensors(self) -> int:
        """How many tensors every level has."""
        return min((writer.tensors_written for writer in self._writers), default=0)

    def _done(self) -> dict[str, Checkpoint]:
        return {
            output.name: Checkpoint(
                self._inputs.fingerprint(output.recipe),
                writer.tensors_written,
                writer.sha256,
                writer.bytes_written,
            )
            for output, writer in zip(self._outputs, self._writers, strict=True)
        }

    def _commit(self, done: Mapping[str, Checkpoint], errors: Mapping[str, Errors]) -> None:
        # only what is on the disk may be in the journal, whatever happens next
        for writer in self._writers:
            writer.sync()
        self._journal.write(JournalContent({**self._others, **done}, dict(errors)))

    def finish(self) -> Iterator[list[str]]:
        """Complete the files level by level; yield the SHA-256 of each level's files.

        Closed early, the files of the levels that follow stay as they are, to be continued.
        """
        self._pool.shutdown()
        unfinished = deque(self._writers)
        try:
            while unfinished:
                hashes = unfinished[0].finish()
                unfinished.popleft()
                yield hashes
        finally:
            for writer in unfinished:
                writer.close()

    def stop(self, keep: bool, errors: Mapping[str, Errors]) -> bool:
        """Keep what is done, to be continued, or remove everything; whether it was kept."""
        self._pool.shutdown()
        keep = keep and self._inputs.known_within(_HASH_SECONDS)
        # where opening was interrupted, or one of them failed
        self._writers = [opened.result() for opened in self._opening if not opened.exception()]
        if keep and len(self._writers) == len(self._outputs):
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
        return keep

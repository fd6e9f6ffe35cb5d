"""The files of one level while they are written, tensor by tensor."""

import hashlib
from collections.abc import Callable

from minitron_core.errors import Damaged, NotFound
from minitron_core.gguf import GgufWriter
from minitron_quant.array_backend import Bytes
from minitron_quant.quantize.journal import NO_CHECKPOINT, Checkpoint
from minitron_quant.quantize.prepare import LevelOutput


def open_level(output: LevelOutput, done: Checkpoint) -> "LevelWriter":
    """Continue the files of an earlier run; start over if they have changed since."""
    try:
        writer = LevelWriter(output, done)
    except (Damaged, NotFound):
        return LevelWriter(output)
    if done != NO_CHECKPOINT and writer.sha256 != done.sha256:
        writer.close()
        return LevelWriter(output)
    return writer


class LevelWriter:
    """Writes a level, in one file or in shards; done: what is there from an earlier run."""

    def __init__(self, output: LevelOutput, done: Checkpoint = NO_CHECKPOINT) -> None:
        self._writers: list[GgufWriter] = []
        self._digests = [hashlib.sha256() for _ in output.files]
        start = 0
        for file, digest in zip(output.files, self._digests, strict=True):
            count = len(file.specs)
            there = min(max(done.tensors - start, 0), count)
            self._writers.append(
                GgufWriter(
                    file.path,
                    file.metadata,
                    file.specs,
                    resume_tensors=there,
                    resume_bytes=done.bytes if 0 <= done.tensors - start < count else 0,
                    digest=digest,
                )
            )
            start += count
        self._sha256 = self._digests_now()

    @property
    def tensors_written(self) -> int:
        """How many tensors are complete."""
        return sum(writer.tensors_written for writer in self._writers)

    @property
    def bytes_written(self) -> int:
        """How many bytes of the tensor after them."""
        return sum(writer.bytes_written for writer in self._writers)

    @property
    def sha256(self) -> tuple[str, ...]:
        """The SHA-256 of what is written of each file."""
        return self._sha256

    def write(self, data: Bytes) -> None:
        """Append bytes of the current tensor."""
        for writer in self._writers:
            if writer.tensors_written < len(writer.tensors):
                writer.write(data.data)
                # a write that fails may have changed a digest
                self._sha256 = self._digests_now()
                return

    def _digests_now(self) -> tuple[str, ...]:
        return tuple(digest.hexdigest() for digest in self._digests)

    def sync(self) -> None:
        """Bring what was written to the disk."""
        self._each(lambda writer: writer.sync())

    def finish(self) -> list[str]:
        """Complete the files: they appear under their names, the first shard last.

        Returns the SHA-256 of each, made while it was written.
        """
        for writer in reversed(self._writers):
            writer.finish()
        return list(self._digests_now())

    def close(self) -> None:
        """Leave the partial files to be continued."""
        self._each(lambda writer: writer.close())

    def abort(self) -> None:
        """Remove the partial files."""
        self._each(lambda writer: writer.abort())

    def _each(self, action: Callable[[GgufWriter], None]) -> None:
        for writer in self._writers:
            action(writer)

"""The reference's predictions of some chunks on disk, for models that cannot be in memory with it.

Probabilities at or below e^−16 count for nothing in a divergence and are not stored: a bit says for
every token whether there is one. What is read back is exactly what was put in.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from minitron_core.errors import from_os_error
from minitron_quant.perplexity.divergence import ReferenceChunk


class ReferenceCache:
    """Groups of chunks by the index of their first one; `full` once it holds `budget` bytes."""

    def __init__(self, file: BinaryIO, folder: Path, budget: int) -> None:
        self._file = file
        self._folder = folder
        self._budget = budget
        self._size = 0
        self._groups: dict[int, list[tuple[int, ReferenceChunk]]] = {}

    @property
    def starts(self) -> list[int]:
        """The groups that it holds."""
        return list(self._groups)

    @property
    def full(self) -> bool:
        """Whether no more should be put in."""
        return self._size >= self._budget

    def put(self, start: int, chunks: list[ReferenceChunk]) -> None:
        """Add a group; OutOfResources on a full disk."""
        self._groups[start] = [
            (self._write(chunk), replace(chunk, p=chunk.p[:0])) for chunk in chunks
        ]

    def get(self, start: int) -> list[ReferenceChunk]:
        """A group as it was put in."""
        return [self._read(offset, chunk) for offset, chunk in self._groups[start]]

    def _write(self, chunk: ReferenceChunk) -> int:
        offset = self._file.seek(0, os.SEEK_END)
        kept = chunk.p > 0
        try:
            self._file.write(np.packbits(kept).tobytes())
            self._file.write(chunk.p[kept].tobytes())
        except OSError as error:
            raise from_os_error(error, self._folder, "write") from error
        self._size = self._file.tell()
        return offset

    def _read(self, offset: int, chunk: ReferenceChunk) -> ReferenceChunk:
        self._file.seek(offset)
        shape = len(chunk.log), chunk.p.shape[1]
        size = shape[0] * shape[1]
        bits = np.frombuffer(self._file.read((size + 7) // 8), np.uint8)
        kept = np.unpackbits(bits, count=size).view(np.bool_)
        p = np.zeros(size, np.float32)
        p[kept] = np.frombuffer(self._file.read(4 * int(kept.sum())), np.float32)
        return replace(chunk, p=p.reshape(shape))


@contextmanager
def open_cache(folder: Path, budget: int) -> Iterator[ReferenceCache]:
    """A cache in a file without a name, gone when the block ends or the process dies."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder))
        except OSError as error:
            raise from_os_error(error, folder, "write") from error
        yield ReferenceCache(file, folder, budget)

"""The reference's predictions of some chunks on disk, for models that cannot be in memory with it.

Probabilities at or below e^−16 count for nothing in a divergence and are not stored: a bit says for
every token whether there is one. What is read back is exactly what was put in.
"""

import os
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from minitron_core.errors import from_os_error
from minitron_quant.perplexity.divergence import ReferenceChunk


class ReferenceCache:
    """Groups of chunks by the index of their first one, in a file without a name.

    It is `full` once it holds `budget` bytes, and gone when the block ends or the process dies.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder
        self._budget = budget
        self._size = 0
        self._groups: dict[int, list[tuple[int, ReferenceChunk]]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        try:
            self._file = tempfile.TemporaryFile(dir=self._folder)
        except OSError as error:
            raise from_os_error(error, self._folder, "write") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

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
        with self._lock:
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


class CachedScores:
    """The reference's predictions of a group, read when the first model is compared with them."""

    def __init__(self, cache: ReferenceCache, start: int) -> None:
        self._cache = cache
        self._start = start
        self._chunks: list[ReferenceChunk] | None = None
        self._lock = threading.Lock()

    def chunks(self) -> list[ReferenceChunk]:
        """All chunks of the group; several threads may ask."""
        with self._lock:
            if self._chunks is None:
                self._chunks = self._cache.get(self._start)
            return self._chunks

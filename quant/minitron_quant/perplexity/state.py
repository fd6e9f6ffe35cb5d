"""Scores that survive a killed run: one SQLite file, written as the chunks are done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minitron_core.errors import Damaged, Denied, MinitronError, OutOfResources
from minitron_core.gguf import Gguf
from minitron_core.hashing import file_sha256, fingerprint
from minitron_core.versions import installed_version
from minitron_engine.llama.settings import EVERY_GPU
from minitron_quant.perplexity.divergence import TokenScores
from minitron_quant.perplexity.settings import MeasureSettings

if TYPE_CHECKING:
    import sqlite3

_TABLES = """
CREATE TABLE IF NOT EXISTS measured (
    key TEXT PRIMARY KEY, device TEXT, chunks INTEGER, sha256 TEXT
);
CREATE TABLE IF NOT EXISTS scored (
    key TEXT, chunk INTEGER, together INTEGER, nll BLOB, kld BLOB, same_top BLOB, sha256 TEXT,
    PRIMARY KEY (key, chunk)
) WITHOUT ROWID;
"""


def resume_keys(
    settings: MeasureSettings, text: str, shards: Mapping[Path, Sequence[Gguf]]
) -> dict[Path, str]:
    """A key for each of the settings' files: a hash of everything that its scores depend on.

    Without a state file the path is enough, and no file is hashed.
    """
    if settings.state is None:
        return {path: str(path) for path in shards}

    def hash_model(path: Path) -> str:
        files = (shard.path for shard in shards[path])
        return fingerprint(*(settings.hashes.get(file) or file_sha256(file) for file in files))

    hashes = {path: hash_model(path) for path in shards}
    chunks = replace(settings.chunks, limit=None, threads=None)
    shared = (
        text.encode("utf-8", "surrogateescape"),
        *(repr(chunks), str(settings.gpu_layers), installed_version("llama_cpp_python")),
        # kernels of other devices round differently
        *(() if settings.placement == EVERY_GPU else (repr(settings.placement),)),
    )
    reference = settings.reference
    compared = () if reference is None else (hashes[reference],)
    return {
        path: fingerprint(*shared, own, *(() if path == reference else compared))
        for path, own in hashes.items()
    }


def noise_key(key: str) -> str:
    """The key of a reference's scores in batches of another size, by its own key."""
    return f"{key} in other batches"


@dataclass(frozen=True)
class ModelInfo:
    """The device that a model ran on, and how many chunks the whole text has."""

    device: str
    chunks: int


class State:
    """The scores of every chunk by a model's key, in memory and, with a connection, in its file.

    How many chunks were decoded together changes the last digits: a chunk is known only with the
    same number.
    """

    def __init__(self, connection: sqlite3.Connection | None = None) -> None:
        self._file = connection
        self._info: dict[str, ModelInfo] = {}
        self._scores: dict[str, dict[int, tuple[int, TokenScores]]] = {}

    def load(self, key: str) -> None:
        """Read what the file has of a model; rows whose checksum is wrong are ignored."""
        chunks = self._scores.setdefault(key, {})
        if self._file is None:
            return
        for row in self._file.execute("SELECT * FROM measured WHERE key = ?", (key,)):
            if _is_intact(row):
                self._info[key] = ModelInfo(row[1], row[2])
        for row in self._file.execute("SELECT * FROM scored WHERE key = ?", (key,)):
            if not _is_intact(row):
                continue
            _, chunk, together, nll, kld, same_top, _ = row
            values = TokenScores(
                np.frombuffer(nll), np.frombuffer(kld), np.frombuffer(same_top, np.bool_)
            )
            chunks[chunk] = (together, values)

    def set_info(self, key: str, info: ModelInfo) -> None:
        """Keep what is known of a model once it is loaded."""
        self._info[key] = info
        if self._file is not None:
            with self._file:
                row = _with_checksum(key, info.device, info.chunks)
                self._file.execute("INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?)", row)

    def info(self, key: str) -> ModelInfo | None:
        """What `set_info` got, now or in an earlier run."""
        return self._info.get(key)

    def has(self, key: str, start: int, count: int) -> bool:
        """Whether the chunks from `start` on, `count` decoded together, are known."""
        chunks = self._scores[key]
        return all(chunks.get(start + i, (0,))[0] == count for i in range(count))

    def is_complete(self, key: str, n_seq: int, limit: int | None) -> bool:
        """Whether all chunks of a model, or the first `limit`, are known in groups of n_seq."""
        info = self.info(key)
        if info is None:
            return False
        count = min(info.chunks, limit or info.chunks)
        starts = range(0, count, n_seq)
        return all(self.has(key, start, min(n_seq, count - start)) for start in starts)

    def put(self, key: str, start: int, scores: Sequence[TokenScores]) -> None:
        """Add chunks that were decoded together; durable when it returns."""
        count = len(scores)
        for chunk, values in enumerate(scores, start):
            self._scores[key][chunk] = (count, values)
        if self._file is not None:
            rows = [
                _with_checksum(
                    key, chunk, count, s.nll.tobytes(), s.kld.tobytes(), s.same_top.tobytes()
                )
                for chunk, s in enumerate(scores, start)
            ]
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO scored VALUES (?,?,?,?,?,?,?)", rows)

    def scores(self, key: str, limit: int | None = None) -> list[TokenScores]:
        """The chunks of a model from the first on, up to `limit` or the first that is unknown."""
        chunks = self._scores[key]
        found: list[TokenScores] = []
        while len(found) in chunks and len(found) != limit:
            found.append(chunks[len(found)][1])
        return found


def _with_checksum(*values: object) -> tuple[object, ...]:
    """A row with the SHA-256 of its values at its end."""
    return (*values, hashlib.sha256(repr(values).encode()).hexdigest())


def _is_intact(row: Sequence[object]) -> bool:
    return tuple(row) == _with_checksum(*row[:-1])


@contextmanager
def open_state(path: Path | None) -> Iterator[State]:
    """The state in a file, created where it does not exist; only in memory without a path.

    Raises Damaged for a file of another kind, Denied, OutOfResources on a full disk.
    """
    if path is None:
        yield State()
        return
    import sqlite3

    try:
        connection = sqlite3.connect(path, timeout=60)
    except sqlite3.OperationalError as error:
        raise Denied(f"{path} cannot be written: {error}") from error
    try:
        connection.executescript(_TABLES)
        yield State(connection)
    except sqlite3.Error as error:
        raise _explained(path, error) from error
    finally:
        connection.close()


def _explained(path: Path, error: sqlite3.Error) -> MinitronError:
    import sqlite3

    if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
        return OutOfResources(f"the disk is full: {path} was not written", "free some space")
    if isinstance(error, sqlite3.OperationalError):
        return Denied(f"{path} cannot be written: {error}")
    return Damaged(f"{path} holds no measured rows: {error}", "choose another name for --resume")

"""Scores that outlive a killed run: one SQLite file, written as the chunks are done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minitron_core.errors import Damaged, Denied, MinitronError, OutOfResources
from minitron_quant.perplexity.divergence import TokenScores

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


@dataclass(frozen=True)
class About:
    """Where a model ran, and how many chunks the whole text has."""

    device: str
    chunks: int


class State:
    """The scores of every chunk by a model's key, in memory and, with a path, in a file as well.

    A key stands for everything that the numbers depend on. `together`: how many chunks were decoded
    at once, on which the last digits depend; a chunk counts as known only with the same number.
    """

    def __init__(self, connection: sqlite3.Connection | None = None) -> None:
        self._file = connection
        self._about: dict[str, About] = {}
        self._scores: dict[str, dict[int, tuple[int, TokenScores]]] = {}

    def load(self, key: str) -> None:
        """Take over what the file has of a model; rows that were changed since count as none."""
        chunks = self._scores.setdefault(key, {})
        if self._file is None:
            return
        for row in self._file.execute("SELECT * FROM measured WHERE key = ?", (key,)):
            if _is_sealed(row):
                self._about[key] = About(row[1], row[2])
        for row in self._file.execute("SELECT * FROM scored WHERE key = ?", (key,)):
            if not _is_sealed(row):
                continue
            _, chunk, together, nll, kld, same_top, _ = row
            values = TokenScores(
                np.frombuffer(nll), np.frombuffer(kld), np.frombuffer(same_top, np.bool_)
            )
            chunks[chunk] = (together, values)

    def describe(self, key: str, about: About) -> None:
        """Keep what is known of a model once it is open."""
        self._about[key] = about
        if self._file is not None:
            with self._file:
                row = _sealed(key, about.device, about.chunks)
                self._file.execute("INSERT OR REPLACE INTO measured VALUES (?, ?, ?, ?)", row)

    def about(self, key: str) -> About | None:
        """What `describe` was told, now or in an earlier run."""
        return self._about.get(key)

    def has(self, key: str, start: int, count: int) -> bool:
        """Whether the chunks from `start` on, `count` decoded together, are known."""
        chunks = self._scores[key]
        return all(chunks.get(start + i, (0,))[0] == count for i in range(count))

    def put(self, key: str, start: int, scores: Sequence[TokenScores]) -> None:
        """Add chunks that were decoded together; durable when it returns."""
        count = len(scores)
        for chunk, values in enumerate(scores, start):
            self._scores[key][chunk] = (count, values)
        if self._file is not None:
            rows = [
                _sealed(key, chunk, count, s.nll.tobytes(), s.kld.tobytes(), s.same_top.tobytes())
                for chunk, s in enumerate(scores, start)
            ]
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO scored VALUES (?,?,?,?,?,?,?)", rows)

    def scores(self, key: str) -> list[TokenScores]:
        """The chunks of a model from the first on, as far as they are known without a gap."""
        chunks = self._scores[key]
        found: list[TokenScores] = []
        while len(found) in chunks:
            found.append(chunks[len(found)][1])
        return found


def _sealed(*values: object) -> tuple[object, ...]:
    """A row with the SHA-256 of its values at its end."""
    return (*values, hashlib.sha256(repr(values).encode()).hexdigest())


def _is_sealed(row: Sequence[object]) -> bool:
    return tuple(row) == _sealed(*row[:-1])


@contextmanager
def open_state(path: Path | None) -> Iterator[State]:
    """The state in a file, made where there is none; in memory only without a path.

    Raises Damaged for a file that is something else, Denied, OutOfResources on a full disk.
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

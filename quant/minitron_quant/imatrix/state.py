"""The state of an unfinished collection: exact sums, so that a resumed run gives the same bytes."""

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Denied, MinitronError
from minitron_quant.imatrix.matrix import Entry

# "restart" ignores a state; "continue" refuses the state of another run, "if possible" drops it
Resume = Literal["restart", "continue", "if possible"]
# everything that the sums depend on, by name
Dependencies = Mapping[str, Any]
# between two saves, or so many times what one takes
_SECONDS, _TIMES_COST = 10.0, 50
_DIGEST_BYTES = 32
_UNREADABLE = (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile)


def state_path(output: Path) -> Path:
    """Where the state of an unfinished output is."""
    return output.with_name(f".{output.name}.state")


@dataclass
class Saved:
    """Sums over the first `chunks` chunks, and −log p of their scored tokens if requested."""

    chunks: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    nll: list[NDArray[np.float64]] = field(default_factory=list)


@dataclass
class StateFile:
    """Saves every `every` chunks, or every ten seconds or so; without a path it saves nothing.

    dependencies: computed when first needed, since it hashes the model.
    """

    path: Path | None
    dependencies: Callable[[], Dependencies]
    every: int | None = None
    _known: Dependencies | None = None
    _last_chunks: int = 0
    _last_time: float = field(default_factory=time.monotonic)
    _cost: float = 0.0

    def load(self, resume: Resume) -> Saved:
        """What was saved, or nothing; MinitronError for the state of another run."""
        if self.path is None or resume == "restart" or not self.path.exists():
            return Saved()
        try:
            found, saved = _read(self.path)
        except _UNREADABLE as error:
            if resume == "if possible":
                return Saved()
            raise Denied(f"{self.path} cannot be read", "remove it and start again") from error
        now = self._dependencies()
        others = [key for key, value in now.items() if found.get(key) != value]
        if others and resume == "continue":
            raise MinitronError(
                f"the unfinished run had another {', '.join(others)}",
                f"use the same, or remove {self.path} and start again",
            )
        if others:
            return Saved()
        self._last_chunks = saved.chunks
        return saved

    def due(self, saved: Saved) -> bool:
        """Whether it is time to save."""
        if self.path is None:
            return False
        if self.every is None:
            return time.monotonic() - self._last_time >= max(_SECONDS, _TIMES_COST * self._cost)
        return saved.chunks - self._last_chunks >= self.every

    def save(self, saved: Saved) -> None:
        """Replace the file."""
        if self.path is not None:
            started = time.monotonic()
            write_whole(self.path, _encoded(saved, self._dependencies()))
            self._last_chunks, self._last_time = saved.chunks, time.monotonic()
            self._cost = self._last_time - started

    def kept(self, total: int) -> str:
        """What a run that is interrupted now can continue from; empty if there is nothing."""
        if self.path is None or not self._last_chunks:
            return ""
        return f"{self._last_chunks} of {total} chunks are kept in {self.path}"

    def _dependencies(self) -> Dependencies:
        if self._known is None:
            self._known = self.dependencies()
        return self._known


def saved_chunks(path: Path) -> int | None:
    """How many chunks an unfinished run has done; None if there is no readable state."""
    try:
        return _read(path)[1].chunks
    except _UNREADABLE:
        return None


def _encoded(saved: Saved, dependencies: Dependencies) -> bytes:
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in saved.entries.items():
        arrays[f"sums/{name}"], arrays[f"counts/{name}"] = entry.sums, entry.counts
        if entry.totals is not None:
            arrays[f"totals/{name}"] = entry.totals
    if saved.nll:
        arrays["nll"] = np.stack(saved.nll)
    header = json.dumps({"chunks": saved.chunks, "dependencies": dependencies})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, header=np.array(header), **arrays)
    data = buffer.getvalue()
    return hashlib.sha256(data).digest() + data


def _read(path: Path) -> tuple[dict[str, Any], Saved]:
    found = path.read_bytes()
    digest, data = found[:_DIGEST_BYTES], found[_DIGEST_BYTES:]
    if digest != hashlib.sha256(data).digest():
        raise ValueError("changed since it was written")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        header = json.loads(str(arrays["header"]))
        saved = Saved(int(header["chunks"]))
        if "nll" in arrays:
            saved.nll = list(arrays["nll"])
        for key in arrays.files:
            group, _, name = key.partition("/")
            if group == "sums":
                totals = f"totals/{name}"
                saved.entries[name] = Entry(
                    arrays[key],
                    arrays[f"counts/{name}"],
                    arrays.get(totals),
                )
        return dict(header["dependencies"]), saved

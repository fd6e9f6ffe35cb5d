"""What sequential GPTQ keeps on disk while it runs: states, codes, and how far it is.

States of a layer are read from one file and written to another, in turn; codes lie in a file for
each tensor of each level. A kill loses at most the tensor in work, and the runs of its layer.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minitron_core.atomic_files import read_checksummed, write_checksummed, write_whole
from minitron_core.errors import Damaged, OutOfResources, from_os_error
from minitron_quant.array_backend import Bytes, Floats

# the side of the full model; levels are sides under their own names
FULL = "full"


class TokenValues:
    """Values of every token of the text, [tokens, columns] float32, in a file without a name."""

    def __init__(self, folder: Path, tokens: int, columns: int) -> None:
        """Raises OutOfResources where the disk has no room."""
        self._folder, self._columns = folder, columns
        try:
            self._file, path = tempfile.mkstemp(dir=folder)
        except OSError as error:
            raise from_os_error(error, folder, "write") from error
        Path(path).unlink()
        try:
            # takes the room now
            os.posix_fallocate(self._file, 0, 4 * tokens * columns)
        except OSError as error:
            self.close()
            raise from_os_error(error, folder, "write") from error

    def write(self, rows: slice, values: Floats) -> None:
        """Keep the values of some tokens."""
        data = np.ascontiguousarray(values, np.float32)
        try:
            written = os.pwrite(self._file, data.data, 4 * self._columns * rows.start)
        except OSError as error:
            raise from_os_error(error, self._folder, "write") from error
        if written != data.nbytes:
            raise OutOfResources(f"{self._folder} took {written} of {data.nbytes} bytes")

    def read(self, rows: slice) -> Floats:
        """The values of some tokens, in any thread."""
        found = np.empty((rows.stop - rows.start, self._columns), np.float32)
        read = os.preadv(self._file, [found.data], 4 * self._columns * rows.start)
        if read != found.nbytes:
            raise Damaged(f"a file in {self._folder} was changed", "start over")
        return found

    def close(self) -> None:
        """Give the room back."""
        os.close(self._file)


class SequentialStore:
    """A folder of one run. layers: how many are done; 0 also where only the embedding is.

    made_from: a hash over all inputs; what was made from others is removed. shape: of the states
    of one side, (tokens, width). kept: numbers per token of the current layer. stages: by level,
    how many of the current layer are done. ridges: by level and weight, those of the last layer
    that has it.
    """

    def __init__(
        self,
        folder: Path,
        made_from: str,
        shape: tuple[int, int],
        levels: Sequence[str],
        kept: int = 0,
    ) -> None:
        self.folder, self.shape, self.levels = folder, shape, tuple(levels)
        self._kept = kept
        self._made_from = made_from
        self._journal = folder / "journal.json"
        self.layers = -1
        self.stages = dict.fromkeys(levels, 0)
        self.ridges: dict[str, dict[str, float]] = {level: {} for level in levels}
        self._read()

    def _read(self) -> None:
        try:
            document = read_checksummed(self._journal)
            if document["made_from"] == self._made_from:
                layers, stages = int(document["layers"]), document["stages"]
                self.layers, self.stages, self.ridges = layers, stages, document["ridges"]
        except (OSError, ValueError, KeyError, TypeError):
            pass

    @property
    def bytes(self) -> int:
        """The size of all states and of the values of the current layer, without codes."""
        tokens, width = self.shape
        return 4 * tokens * (2 * (1 + len(self.levels)) * width + self._kept)

    def begin(self, code_bytes: int) -> None:
        """Make the folder, or continue with it; OutOfResources where the disk has no room."""
        if self.layers >= 0:
            return
        self.remove()
        needed, free = self.bytes + code_bytes, shutil.disk_usage(self.folder.parent).free
        if needed > free:
            raise OutOfResources(
                f"{self.folder.parent} has {free / 1e9:.1f} GB free, and the states of the text "
                f"need {needed / 1e9:.1f} GB",
                "free some space, give a shorter text, or use --gptq independent",
            )
        try:
            self.folder.mkdir()
        except OSError as error:
            raise from_os_error(error, self.folder, "write") from error

    def finish_stage(self, level: str) -> None:
        """Record that all codes of a level's next stage are kept, with its ridges."""
        self.stages[level] += 1
        self._record()

    def finish_layer(self) -> None:
        """Record that the new states of all sides are there; at first those of the embedding."""
        self.layers += 1
        self.stages = dict.fromkeys(self.levels, 0)
        self._record()

    def _record(self) -> None:
        document = {
            "made_from": self._made_from,
            "layers": self.layers,
            "stages": self.stages,
            "ridges": self.ridges,
        }
        write_checksummed(self._journal, document)

    def keep(self, level: str, tensor: str, codes: Bytes) -> None:
        """Keep the codes of a tensor at a level."""
        write_whole(self._codes(level, tensor), codes.tobytes())

    def keeps(self, level: str, tensor: str) -> bool:
        """Whether the codes of a tensor are there."""
        return self._codes(level, tensor).exists()

    def _codes(self, level: str, tensor: str) -> Path:
        return self.folder / f"{level}.{tensor}.codes"

    def codes(self, level: str, tensor: str, offset: int, size: int) -> Bytes:
        """Some of the codes of a tensor; Damaged where they changed."""
        path = self._codes(level, tensor)
        try:
            found = np.fromfile(path, np.uint8, size, offset=offset)
        except OSError as error:
            raise from_os_error(error, path, "read") from error
        if len(found) != size:
            raise Damaged(f"{path} was changed", "remove its folder and start over")
        return found

    def states(self, side: str, layers: int) -> Floats:
        """The states of a side after so many layers, [tokens, width], mapped."""
        path = self._states(side, layers)
        try:
            return np.asarray(np.memmap(path, np.float32, "r", shape=self.shape))
        except (OSError, ValueError) as error:
            raise Damaged(f"{path} was changed", "remove its folder and start over") from error

    @contextmanager
    def new_states(self, side: str, layers: int) -> Iterator[Floats]:
        """The states of a side after so many layers, to be filled; at the end they are durable."""
        path = self._states(side, layers)
        try:
            with path.open("wb") as file:
                # takes the room now: a full disk must not become a bus error later
                os.posix_fallocate(file.fileno(), 0, 4 * self.shape[0] * self.shape[1])
            mapped = np.memmap(path, np.float32, "r+", shape=self.shape)
        except OSError as error:
            raise from_os_error(error, path, "write") from error
        yield np.asarray(mapped)
        mapped.flush()

    def _states(self, side: str, layers: int) -> Path:
        return self.folder / f"{side}.{layers % 2}.states"

    def token_values(self, columns: int) -> TokenValues:
        """Room for a value of the current layer, for every token."""
        return TokenValues(self.folder, self.shape[0], columns)

    def drop_states(self) -> None:
        """Remove the states, once the codes of all layers are there."""
        for path in self.folder.glob("*.states"):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.layers = -1

"""What is done and what it was made from: resume after any interruption, and prove the result.

Two files stand beside the outputs. The journal lives while a job runs: how many tensors of each
unfinished file are durable. The manifest stays: for every finished file what it was made from.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from minitron_core.atomic_files import read_sealed, write_sealed
from minitron_core.errors import Damaged, Denied


class Checkpoint(NamedTuple):
    """How far a level is: the fingerprint of what it is made from, how many tensors are durable,
    and the SHA-256 of each of its files up to there.
    """

    made_from: str
    tensors: int
    sha256: tuple[str, ...] = ()


NO_CHECKPOINT = Checkpoint("", 0)


@dataclass(frozen=True)
class JournalContent:
    """What a journal says.

    errors: for tensors that are done, the sums of encoding errors by type, see encode.Errors.
    """

    levels: dict[str, Checkpoint] = field(default_factory=dict)
    errors: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Journal:
    """How far a job is; replaced whole whenever the files on disk have caught up."""

    path: Path

    def read(self) -> JournalContent:
        """What was written last; a journal that cannot be read, or was changed, counts as none."""
        try:
            document = read_sealed(self.path)
            levels = {
                name: Checkpoint(made_from, tensors, tuple(sha256))
                for name, (made_from, tensors, sha256) in document["levels"].items()
            }
            errors = {
                name: {
                    int(ggml_type): (error, weight) for ggml_type, (error, weight) in sums.items()
                }
                for name, sums in document["errors"].items()
            }
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            return JournalContent()
        return JournalContent(levels, errors)

    def write(self, recorded: JournalContent) -> None:
        """Replace what was written before, durably."""
        write_sealed(self.path, asdict(recorded))

    def remove(self, levels: Collection[str]) -> None:
        """These levels are over; without others, which an earlier job has left, so is the file."""
        recorded = self.read()
        others = {name: done for name, done in recorded.levels.items() if name not in levels}
        if others:
            self.write(JournalContent(others, recorded.errors))
        else:
            self.path.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, or an empty one where there is none; Damaged if it is not as written."""
    try:
        return read_sealed(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Damaged(
            f"{path} is no manifest, or was changed",
            "remove it, and use --force to make the files anew",
        ) from error

"""The journal and the manifest of a quantization: resume it, and record its inputs.

Both files are beside the outputs. The journal exists while a job runs: how many tensors of each
unfinished file are durable. The manifest stays: what every finished file was made from.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from minitron_core.atomic_files import read_checksummed, write_checksummed
from minitron_core.errors import Damaged, Denied


class Checkpoint(NamedTuple):
    """How far a level is.

    made_from: the fingerprint of its inputs. tensors: how many are durable. sha256: of each of its
    files up to there. bytes: durable of the tensor after them.
    """

    made_from: str
    tensors: int
    sha256: tuple[str, ...] = ()
    bytes: int = 0


NO_CHECKPOINT = Checkpoint("", 0)


@dataclass(frozen=True)
class JournalContent:
    """What a journal records.

    errors: of the tensors that are done, the encoding errors by type, see encode.Errors.
    """

    levels: dict[str, Checkpoint] = field(default_factory=dict)
    errors: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Journal:
    """The progress of a job; replaced whole after each flush of its files."""

    path: Path

    def read(self) -> JournalContent:
        """What was written last; nothing if the journal is missing, damaged or changed."""
        try:
            document = read_checksummed(self.path)
            levels = {
                name: Checkpoint(made_from, tensors, tuple(sha256), size)
                for name, (made_from, tensors, sha256, size) in document["levels"].items()
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
        write_checksummed(self.path, asdict(recorded))

    def remove(self, levels: Collection[str]) -> None:
        """Remove levels; the file goes with the last level, since other jobs may have left some."""
        recorded = self.read()
        others = {name: done for name, done in recorded.levels.items() if name not in levels}
        if others:
            self.write(JournalContent(others, recorded.errors))
        else:
            self.path.unlink(missing_ok=True)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest, empty if there is none; Damaged if it changed since it was written."""
    try:
        return read_checksummed(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Damaged(
            f"{path} is not a manifest, or was changed",
            "remove it, and use --force to make the files again",
        ) from error

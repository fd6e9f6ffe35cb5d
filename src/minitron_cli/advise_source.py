"""What `advise` compares: files of a folder or of the Hub, or the levels a model could become."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from minitron_cli.inputs import on_the_hub, planned_header
from minitron_cli.output import Output
from minitron_quant.advise import Fit


@dataclass(frozen=True)
class Candidates:
    """A file or a folder of files. names: what a user calls them, None for the path itself."""

    path: Path
    names: dict[str, str] | None = None

    def named(self, fits: Sequence[Fit]) -> list[Fit]:
        """The rows with paths that last: those of headers alone do not."""
        if self.names is None:
            return list(fits)
        files = [None if each.path is None else Path(each.path).name for each in fits]
        names = [None if file is None else self.names.get(file) for file in files]
        return [replace(each, path=name) for each, name in zip(fits, names, strict=True)]


@contextmanager
def open_candidates(model: Path, out: Output) -> Iterator[Candidates]:
    """The files that MODEL|DIR means; of checkpoints and of files on the Hub only the headers.

    Errors: as the readers of models and checkpoints.
    """
    if model.is_file() or _has_levels(model):
        yield Candidates(model)
        return
    named = on_the_hub(model)
    if named is not None and named.level is None and not named.needs_conversion():
        with named.all_headers() as folder:
            yield Candidates(folder, named.names(folder))
        return
    with planned_header(model, out) as path:
        yield Candidates(path, {} if named is None else {path.name: str(named)})


def _has_levels(model: Path) -> bool:
    return model.is_dir() and (any(model.glob("*.gguf")) or not (model / "config.json").exists())

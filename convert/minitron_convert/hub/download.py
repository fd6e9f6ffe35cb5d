"""Checkpoints on the Hugging Face Hub: the files that a conversion needs, in the Hub's own cache.

Interrupted downloads are resumed, cached files are not fetched again, and HF_ENDPOINT, HF_HOME,
HF_TOKEN and HF_HUB_OFFLINE are honoured: all of this is huggingface_hub's.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

from minitron_convert.checkpoint.file_names import BESIDE_WEIGHTS, WEIGHTS
from minitron_convert.hub.source import Source
from minitron_core.errors import Denied, MinitronError, NotFound, OutOfResources
from minitron_core.progress import Event, Progress, ignore

_UNREACHABLE = (OSError, HTTPError)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@.+)?")
# as a browser, Ollama and llama-server's users write it; a path keeps one slash of two
_HOST = re.compile(r"(https?:/+)?(hf\.co|huggingface\.co)/")


def open_source(text: str, revision: str | None = None, progress: Progress | None = None) -> Source:
    """A folder as it is, or owner/name[@revision] on the Hub, downloaded.

    Errors: NotFound, Denied (network, private or gated repository), OutOfResources.
    """
    repository = parse_repository(text, revision)
    return Source(Path(text).expanduser()) if repository is None else repository.download(progress)


def parse_repository(text: str, revision: str | None = None) -> Repository | None:
    """The repository that owner/name[@revision] names, None for what can only be a folder."""
    if Path(text).expanduser().exists():
        return None
    text = without_host(text)
    if not _REPOSITORY.fullmatch(text):
        return None
    name, _, given = text.partition("@")
    return Repository(name, revision or given or None)


def without_host(text: str) -> str:
    """owner/name of hf.co/owner/name or https://huggingface.co/owner/name; other texts as is."""
    return text[found.end() :].rstrip("/") if (found := _HOST.match(text)) else text


@dataclass(frozen=True)
class Repository:
    """owner/name on the Hub, at a branch, tag or commit (None for the main branch)."""

    name: str
    revision: str | None = None

    def download(self, progress: Progress | None = None) -> Source:
        """Fetch what a conversion needs. Errors as open_source."""
        with self.explained():
            files = self.files()
            return self.fetch(_choose(self.name, files), progress)

    def files(self) -> dict[str, int] | None:
        """The files with the bytes still to fetch, none for those in the cache.

        None without a network, or where none is wanted: what is in the cache may do.
        """
        api = huggingface_hub.HfApi()
        try:
            info = api.model_info(self.name, revision=self.revision, files_metadata=True)
        except errors.HfHubHTTPError:
            raise
        except _UNREACHABLE:
            return None
        sizes = {}
        for file in info.siblings or []:
            cached = huggingface_hub.try_to_load_from_cache(
                self.name, file.rfilename, revision=info.sha
            )
            sizes[file.rfilename] = 0 if isinstance(cached, str) else file.size or 0
        return sizes

    def fetch(self, patterns: list[str], progress: Progress | None = None) -> Source:
        """Download the files that match into the Hub's cache."""
        folder = huggingface_hub.snapshot_download(
            self.name,
            revision=self.revision,
            allow_patterns=patterns,
            tqdm_class=_silent_bar(progress or ignore),
        )
        return Source(Path(folder), self.name.partition("/")[2])

    @contextmanager
    def explained(self) -> Iterator[None]:
        """What huggingface_hub meets within becomes an error of this package."""
        try:
            yield
        except MinitronError:
            raise
        except (*_UNREACHABLE, ValueError) as error:
            raise _explain(error, self.name, self.revision) from error


def _choose(repository: str, files: dict[str, int] | None) -> list[str]:
    """Patterns of the files to fetch.

    Errors: NotFound without a checkpoint, OutOfResources where the disk is too small.
    """
    if files is None:
        return [*BESIDE_WEIGHTS, *WEIGHTS[0]]
    weights = next((form for form in WEIGHTS if matching(files, form[:1])), None)
    if weights is None or "config.json" not in files:
        raise NotFound(
            f"{repository} on the Hub is not a checkpoint: it has no "
            f"{'config.json' if weights else 'model.safetensors or pytorch_model.bin'}",
            "another revision may have one: give it as owner/name@revision",
        )
    wanted = matching(files, (*BESIDE_WEIGHTS, *weights))
    check_space(repository, sum(files[name] for name in wanted))
    return wanted


def check_space(repository: str, size: int) -> None:
    """OutOfResources where the disk of the Hub's cache has less than `size` bytes free."""
    folder = Path(constants.HF_HUB_CACHE)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OutOfResources(
            f"{folder} has {free} bytes free; {repository} needs {size}",
            "set HF_HOME to a folder with more space",
        )


def matching(files: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names that match one of the patterns, at the depth of the pattern."""
    return [
        name
        for name in files
        if any(
            fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")
            for pattern in patterns
        )
    ]


def _explain(error: Exception, repository: str, revision: str | None) -> MinitronError:
    """The error that tells what huggingface_hub met."""
    if isinstance(error, errors.GatedRepoError):
        return Denied(
            f"{repository} on the Hub is gated",
            "accept its terms on its page, then set HF_TOKEN or run hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{repository} on the Hub has no revision {revision}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFound(
            f"{repository} is neither here nor a repository on the Hub",
            "check the name; a private one needs HF_TOKEN",
        )
    if isinstance(error, errors.HFValidationError):
        return NotFound(f"{repository} is neither here nor the name of a repository")
    if isinstance(error, errors.LocalEntryNotFoundError):
        return Denied(
            f"the Hub cannot be reached and the cache does not hold all of {repository}",
            "check the network, HF_HUB_OFFLINE and HF_ENDPOINT, then run the command again: "
            "it goes on where it stopped",
        )
    told = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Denied(
        f"cannot download {repository}: {told}",
        "check the network and run the command again: it goes on where it stopped",
    )


def _silent_bar(progress: Progress) -> type[Any]:
    """A class that huggingface_hub takes for a progress bar and that tells `progress` instead."""
    return type("Bar", (_Bar,), {"progress": staticmethod(progress)})


class _Bar:
    """As much of tqdm as huggingface_hub uses, showing nothing."""

    progress: Progress = staticmethod(ignore)
    _lock = threading.RLock()

    def __init__(self, *items: Any, **settings: Any) -> None:
        self.items = items[0] if items else settings.get("iterable")
        self.total = settings.get("total") or 0
        self.n = settings.get("initial") or 0
        self.bytes = settings.get("unit") == "B"

    def __iter__(self) -> Any:
        return iter(self.items or ())

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        """Tell that `n` more are done; only the bars of bytes say anything of use."""
        self.n += n or 0
        if self.bytes:
            self.progress(Event("download", int(self.n), int(self.total), "bytes"))

    @classmethod
    def get_lock(cls) -> Any:
        """The lock that bars in threads share."""
        return cls._lock

    @classmethod
    def set_lock(cls, lock: Any) -> None:
        """Share another lock."""
        cls._lock = lock

    def __getattr__(self, name: str) -> Any:
        """Everything else that a bar can do: nothing."""
        return _do_nothing


def _do_nothing(*_: Any, **__: Any) -> None:
    pass

"""GGUF models on the Hugging Face Hub: which files owner/name[@revision][:LEVEL] means."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)

from minitron_convert.hub.download import Repository, check_space, parse_repository, without_host
from minitron_convert.hub.published_names import level_in, models_called, models_in
from minitron_core.errors import Damaged, Denied, NotFound
from minitron_core.gguf import open_gguf, parse_shard_name
from minitron_core.progress import Progress

# what a name without a level means where there are several, as in llama.cpp's own downloads
PREFERRED = "Q4_K_M"
_FIRST_BYTES, _MOST_BYTES = 4 << 20, 1 << 30


@dataclass(frozen=True)
class HubModel:
    """A GGUF model of a repository; without a level the only one, or that of PREFERRED."""

    repository: Repository
    level: str | None = None

    def download(self, progress: Progress | None = None) -> Path:
        """The model's file, or its first shard, in the Hub's cache.

        Errors: NotFound (lists the levels there are), Denied (network, private or gated
        repository), OutOfResources.
        """
        with self.repository.explained():
            files = self.repository.files()
            if files is None:
                return self._cached()
            wanted = self._choose(files)
            check_space(self.repository.name, sum(files[name] for name in wanted))
            return self.repository.fetch(wanted, progress).folder / wanted[0]

    def needs_conversion(self) -> bool:
        """Whether the repository is known to hold no GGUF model. Errors: Denied, NotFound.

        Without a network: whether the cache has a checkpoint's config.
        """
        name, revision = self.repository.name, self.repository.revision
        with self.repository.explained():
            files = self.repository.files()
            if files is None:
                found = huggingface_hub.try_to_load_from_cache(
                    name, "config.json", revision=revision
                )
                return isinstance(found, str)
        return not models_in(files)

    @contextmanager
    def headers(self) -> Iterator[Path]:
        """As download, but what is not in the cache is a file of the same header and size whose
        weights are a hole: it takes no space, and lives as long as the block.
        """
        with tempfile.TemporaryDirectory(prefix="minitron-") as place:
            yield self._header_files(Path(place)) or self.download()

    @contextmanager
    def all_headers(self) -> Iterator[Path]:
        """A folder with a header file for every model of the repository; see `headers`.

        Errors: as download.
        """
        with tempfile.TemporaryDirectory(prefix="minitron-") as place:
            with self.repository.explained():
                files = self.repository.files()
                if files is None:
                    raise Denied(f"the Hub cannot be reached to list {self}", "name a file instead")
                for name in (name for names in models_in(files).values() for name in names):
                    _write_header(self.repository, name, Path(place) / Path(name).name)
            yield Path(place)

    def names(self, folder: Path) -> dict[str, str]:
        """What a user calls each file of a folder: owner/name:LEVEL."""
        found = models_in(path.name for path in folder.iterdir())
        repository = self.repository.name
        return {files[0]: f"{repository}:{level_in(model)}" for model, files in found.items()}

    def _header_files(self, place: Path) -> Path | None:
        with self.repository.explained():
            files = self.repository.files()
            wanted = self._choose(files) if files is not None else []
            if files is None or not any(files[name] for name in wanted):
                return None
            paths = [place / Path(name).name for name in wanted]
            for name, path in zip(wanted, paths, strict=True):
                _write_header(self.repository, name, path)
            return paths[0]

    def _cached(self) -> Path:
        """The same without a network; Denied names what is in the cache."""
        name = self.repository.name
        try:
            folder = Path(
                huggingface_hub.snapshot_download(
                    name,
                    revision=self.repository.revision,
                    allow_patterns=[],
                    local_files_only=True,
                )
            )
            files = {str(path.relative_to(folder)) for path in folder.rglob("*.gguf")}
            wanted = self._choose(files)
        except (LocalEntryNotFoundError, NotFound) as error:
            told = error.hint if isinstance(error, NotFound) else ""
            raise Denied(
                f"the Hub cannot be reached and the cache does not hold {self}",
                told or "check the name, the network, HF_HUB_OFFLINE and HF_ENDPOINT",
            ) from error
        missing = set(_shards_of(wanted[0])) - files
        if missing:
            raise Denied(
                f"the Hub cannot be reached and the cache lacks {len(missing)} shard"
                f"{'s' if len(missing) > 1 else ''} of {self}",
                "run the command again with a network: it goes on where it stopped",
            )
        return folder / wanted[0]

    def _choose(self, files: Iterable[str]) -> list[str]:
        models = models_in(files)
        if not models:
            raise NotFound(
                f"{self.repository.name} on the Hub holds no GGUF model",
                f"if it is a checkpoint: minitron convert {self.repository.name}",
            )
        levels = sorted({level_in(model) for model in models})
        wanted = self.level or PREFERRED
        found = models_called(wanted, models)
        if not self.level and not found and len(models) == 1:
            found = list(models)
        if len(found) == 1:
            return models[found[0]]
        if found:
            raise NotFound(
                f"{self.repository.name} on the Hub has {len(found)} models of level {wanted}",
                f"name one of them: {', '.join(f'{self.repository.name}:{m}' for m in found)}",
            )
        raise NotFound(
            f"{self.repository.name} on the Hub has "
            + (f"no level {self.level}." if self.level else "several levels: which one?"),
            f"there are {', '.join(levels)}: write {self.repository.name}:{levels[0]}",
        )

    def __str__(self) -> str:
        """As the user writes it."""
        return f"{self.repository.name}{f':{self.level}' if self.level else ''}"


def parse_model(text: str) -> HubModel | None:
    """The model that owner/name[@revision][:LEVEL] names; None for what can only be a path."""
    if Path(text).expanduser().exists() or text.endswith(".gguf"):
        return None
    name, _, level = without_host(text).partition(":")
    repository = parse_repository(name)
    return HubModel(repository, level or None) if repository else None


def _shards_of(name: str) -> list[str]:
    shard = parse_shard_name(name)
    return [name] if shard is None else shard.all()


def _write_header(repository: Repository, name: str, path: Path) -> None:
    """Fetch the beginning of a file, as much as its header takes, and leave the rest a hole."""
    url = huggingface_hub.hf_hub_url(repository.name, name, revision=repository.revision)
    size = _FIRST_BYTES
    while True:
        wanted = {**build_hf_headers(), "Range": f"bytes=0-{size - 1}"}
        response = get_session().get(url, headers=wanted, timeout=30)
        hf_raise_for_status(response)
        path.write_bytes(response.content)
        total = int(response.headers.get("Content-Range", "/0").rpartition("/")[2])
        if total <= len(response.content):
            return
        os.truncate(path, total)
        try:
            open_gguf(path)
        except Damaged:
            # a header that goes on beyond what was fetched looks damaged
            size *= 4
            if size > min(4 * total, _MOST_BYTES):
                raise
        else:
            return

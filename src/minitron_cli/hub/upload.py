"""Publishing a folder on the Hub: only what is not there yet, one file after the other.

Every file is a commit of its own, so a push that was stopped goes on where it was: what arrived
is found by its hash. The transfer itself is huggingface_hub's.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub import errors

from minitron_cli.hub import card
from minitron_convert.hub.download import Repository
from minitron_core.errors import Denied, NotFound
from minitron_quant.model_files import models_in, published_in

State = Literal["new", "changed", "there"]
# what a folder of levels holds for others; journals, locks and partial files are hidden
_PATTERNS = ("*.manifest.json", card.NAME, "report.*", "*.dat", "*.types.txt")
_PIECE = 1 << 20


@dataclass(frozen=True)
class Upload:
    """One file and how it stands on the Hub."""

    path: Path
    bytes: int
    state: State


def plan_push(folder: Path, repository: str, revision: str | None = None) -> list[Upload]:
    """What a push would upload, the card last: it speaks of files that are there by then.

    NotFound: no models in the folder; Denied: the Hub refuses or does not answer.
    """
    models_in(folder)
    found = [path for pattern in _PATTERNS for path in folder.glob(pattern)]
    names = {path.name: path for path in (*found, *published_in(folder))}
    paths = [path for name, path in sorted(names.items()) if not name.startswith(".")]
    there = _there(repository, revision)
    uploads = [Upload(path, path.stat().st_size, _state(path, there)) for path in paths]
    return sorted(uploads, key=lambda upload: upload.path.name == card.NAME)


def push(
    uploads: list[Upload],
    repository: str,
    starts: Callable[[str], None],
    *,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Upload what is new or changed; returns the repository's address. Errors: Denied.

    starts: called with what is uploaded next; the bars within a file are huggingface_hub's own.
    """
    api = huggingface_hub.HfApi()
    wanted = [upload for upload in uploads if upload.state != "there"]
    with _explained(repository):
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        for number, upload in enumerate(wanted, 1):
            starts(f"{upload.path.name} ({number} of {len(wanted)})")
            api.upload_file(
                path_or_fileobj=upload.path,
                path_in_repo=upload.path.name,
                repo_id=repository,
                revision=revision,
                commit_message=f"{upload.path.name} with minitron",
            )
    return str(url)


def _there(repository: str, revision: str | None) -> dict[str, str]:
    """Names and hashes of the files on the Hub; none where the repository does not exist yet."""
    api = huggingface_hub.HfApi()
    with _explained(repository):
        try:
            info = api.model_info(repository, revision=revision, files_metadata=True)
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
            return {}
    return {
        file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id or ""
        for file in info.siblings or ()
    }


def _state(path: Path, there: dict[str, str]) -> State:
    if path.name not in there:
        return "new"
    known = there[path.name]
    # large files are known by their SHA-256, small ones by the id that git gives them
    found = _sha256(path) if len(known) == 64 else _git_id(path)
    return "there" if found == known else "changed"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _git_id(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours with a hint; a token is never part of them."""
    try:
        with Repository(repository).explained():
            yield
    except RuntimeError as error:
        # how huggingface_hub wraps what broke within an upload
        raise Denied(
            f"{error} ({error.__cause__ or 'no reason given'})",
            "run the command again: files that arrived are not sent twice",
        ) from error
    except NotFound as error:
        raise NotFound(
            f"{repository} cannot be written to on the Hub",
            "check the name, and that HF_TOKEN may write there",
        ) from error

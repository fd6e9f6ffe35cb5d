"""Texts to calibrate and measure on, fetched where they are published and known by their hashes."""

import hashlib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

from minitron_convert.hub.download import Repository
from minitron_core.atomic_files import write_whole
from minitron_core.errors import AlreadyExists, Damaged, Denied, NotFound, Usage, from_os_error
from minitron_core.hashing import file_sha256

ALL = "all"
_SECONDS = 60


@dataclass(frozen=True)
class Text:
    """A published text. place: owner/name of a dataset on the Hub and the file in it, or a URL.

    member: the text's path in that file, if it is a ZIP archive.
    """

    name: str
    file: str
    use: str
    place: tuple[str, str] | str
    member: str | None
    bytes: int
    sha256: str
    license: str


TEXTS = (
    Text(
        "wikitext2",
        "wiki.test.raw",
        "perplexity, as most published tables measure it",
        ("ggml-org/ci", "wikitext-2-raw-v1.zip"),
        "wikitext-2-raw/wiki.test.raw",
        1_290_590,
        "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08",
        "CC BY-SA 3.0 and GFDL (Wikipedia)",
    ),
    Text(
        "calibration",
        "groups_merged.txt",
        "importance matrices: a mix of prose, chat, code and lists",
        ("froggeric/imatrix", "groups_merged.txt"),
        None,
        419_189,
        "55e9a15c5f33566725577a55f6782843b0126c0807a61ff26c6d0768894cc2b7",
        "not stated by its authors",
    ),
    Text(
        "hellaswag",
        "hellaswag_val_full.txt",
        "the task HellaSwag, in llama.cpp's form",
        # the Hub has it as Parquet only
        "https://raw.githubusercontent.com/klosax/hellaswag_text_data/main/hellaswag_val_full.txt",
        None,
        7_770_677,
        "d572539320eb2050e858ca34b495bbe2103e3b3f1391a9c3bcdf215b0bb93bd1",
        "MIT",
    ),
)


@dataclass(frozen=True)
class Fetched:
    """A text on the disk; kept: it was there already."""

    text: Text
    path: Path
    kept: bool


def texts_named(names: Sequence[str]) -> list[Text]:
    """The texts of these names, `all` for every one. Usage names those there are."""
    by_name = {text.name: text for text in TEXTS}
    wanted = [*by_name] if ALL in names else list(dict.fromkeys(names))
    unknown = next((name for name in wanted if name not in by_name), None)
    if unknown is not None:
        raise Usage(f"there is no text called {unknown}", f"choose from: {', '.join(by_name)}, all")
    return [by_name[name] for name in wanted]


def fetch(text: Text, folder: Path, *, force: bool = False) -> Fetched:
    """Write a text into a folder; one with the right hash is kept.

    AlreadyExists: another file has its name; Damaged: what came has another hash; Denied, NotFound.
    """
    path = folder / text.file
    if path.is_file() and file_sha256(path) == text.sha256:
        return Fetched(text, path, kept=True)
    if path.exists() and not force:
        raise AlreadyExists(f"{path} exists and is another text", "--force replaces it")
    data = _from_hub(text, *text.place) if isinstance(text.place, tuple) else _from_url(text.place)
    found = hashlib.sha256(data).hexdigest()
    if found != text.sha256:
        raise Damaged(
            f"{text.file} as it is published now has the SHA-256 {found[:16]}…, not "
            f"{text.sha256[:16]}…",
            "numbers measured on it would not be comparable; find the text elsewhere",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder, "write") from error
    write_whole(path, data)
    return Fetched(text, path, kept=False)


def _from_hub(text: Text, name: str, file: str) -> bytes:
    with Repository(name).explained():
        path = Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset"))
    if text.member is None:
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive, archive.open(text.member) as member:
            return member.read(text.bytes + 1)
    except (zipfile.BadZipFile, KeyError) as error:
        raise Damaged(f"{file} of {name} on the Hub does not hold {text.member}") from error


def _from_url(url: str) -> bytes:
    if constants.HF_HUB_OFFLINE:
        raise Denied(f"HF_HUB_OFFLINE is set, and {url} is not here", "unset it to download")
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            data: bytes = answer.read()
    except urllib.error.HTTPError as error:
        raise NotFound(f"{url} cannot be read: {error.code} {error.reason}") from error
    except OSError as error:
        raise Denied(f"{url} cannot be reached: {error}", "check the network") from error
    return data

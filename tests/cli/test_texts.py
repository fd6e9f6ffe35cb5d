"""minitron texts: known bytes or nothing, from a server on this machine."""

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from helpers.download_hub import DownloadHub
from helpers.python_server import Ended, PythonServer
from helpers.support import ROOT, fails
from minitron_cli.hub import texts
from minitron_core.errors import Damaged, Denied, NotFound

CONTENT = b"In the beginning was the word.\n"
# huggingface_hub reads its environment when it is imported
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from minitron_cli.hub.texts import TEXTS, fetch
for text in TEXTS[:2]:
    known = replace(text, sha256=sys.argv[1], bytes=int(sys.argv[2]))
    print(fetch(known, Path("out")).kept, fetch(known, Path("out")).kept)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[DownloadHub]:
    """A Hub with the files of the first two texts, of other content, in one dataset."""
    folder = tmp_path / "hub"
    folder.mkdir()
    with zipfile.ZipFile(folder / "wikitext-2-raw-v1.zip", "w") as archive:
        archive.writestr("wikitext-2-raw/wiki.test.raw", CONTENT)
    (folder / "groups_merged.txt").write_bytes(CONTENT)
    with DownloadHub(folder, r"[\w-]+/[\w-]+") as hub:
        yield hub


@pytest.fixture
def run(python: PythonServer, hub: DownloadHub, tmp_path: Path) -> Callable[..., Ended]:
    """Runs Python in a process of its own that takes a server for the Hub."""
    return lambda *words: python.run(words, hub.environment(tmp_path / "home"), tmp_path)


def test_fetch_takes_known_bytes_from_the_hub(run: Callable[..., Ended], tmp_path: Path) -> None:
    ran = run("-c", PROGRAM, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    assert ran.stdout.split() == ["False", "True"] * 2, ran.stderr
    for name in ("wiki.test.raw", "groups_merged.txt"):
        assert (tmp_path / "out" / name).read_bytes() == CONTENT


def test_texts_refuses_other_bytes(run: Callable[..., Ended], tmp_path: Path) -> None:
    ran = run("-m", "minitron_cli", "texts", "wikitext2")
    assert ran.returncode == 8 and "has the SHA-256" in ran.stderr, ran.stderr
    assert not (tmp_path / "wiki.test.raw").exists()


def test_fetch_reads_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served.txt").write_bytes(CONTENT)

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/served.txt"
    text = replace(texts.TEXTS[2], place=url, sha256=hashlib.sha256(CONTENT).hexdigest())
    try:
        assert texts.fetch(text, tmp_path / "out").path.read_bytes() == CONTENT
        with pytest.raises(Damaged):
            texts.fetch(replace(text, file="other.txt", sha256="0" * 64), tmp_path / "out")
        with pytest.raises(NotFound):
            texts.fetch(replace(text, file="none.txt", place=f"{url}.none"), tmp_path)
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(Denied):
        texts.fetch(replace(text, file="closed.txt"), tmp_path)
    monkeypatch.setattr(texts.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Denied, match="OFFLINE"):
        texts.fetch(replace(text, file="closed.txt"), tmp_path)


def test_texts_lists_licenses_and_refuses_what_it_does_not_know(
    minitron: Any, tmp_path: Path
) -> None:
    listed = minitron("texts", "--json").document["texts"]
    assert [each["name"] for each in listed] == ["wikitext2", "calibration", "hellaswag"]
    assert all(each["license"] and len(each["sha256"]) == 64 for each in listed)
    assert "CC BY-SA 3.0" in minitron("texts").out
    fails(minitron("texts", "novel"), 2, "wikitext2, calibration, hellaswag, all")
    (tmp_path / "wiki.test.raw").write_text("mine")
    fails(minitron("texts", "wikitext2", "-d", tmp_path), 1, "another text", "--force")


def test_texts_are_the_published_ones() -> None:
    folder = ROOT.parent / "shared" / "text"
    if not folder.is_dir():
        pytest.skip("the published texts are not here")
    known = {text.file: (text.bytes, text.sha256) for text in texts.TEXTS}
    for path in folder.iterdir():
        data = path.read_bytes()
        assert known[path.name] == (len(data), hashlib.sha256(data).hexdigest())

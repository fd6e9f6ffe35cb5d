"""Checkpoints from the Hub, served by a small server on this machine through HF_ENDPOINT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.download_hub import DownloadHub
from helpers.python_server import PythonServer
from minitron_convert.hub.download import _choose, open_source
from minitron_convert.hub.source import Source
from minitron_core.errors import NotFound
from minitron_core.gguf import open_gguf

ROOT = Path(__file__).parents[2]

# Environment variables are read when huggingface_hub is imported: each use is a new process.
PROGRAM = """
import json, sys
from pathlib import Path
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import MinitronError
from minitron_convert.hub.download import open_source
events = []
try:
    source = open_source(sys.argv[1], progress=events.append)
    out = Path(sys.argv[2])
    result = convert(ConvertSettings(source.folder, out, name=source.name, force=True))
    found = {"path": str(result.paths[0]), "files": sorted(p.name for p in source.folder.iterdir())}
except MinitronError as error:
    found = {"error": type(error).__name__, "message": str(error), "hint": error.hint}
done = [event.done for event in events]
found["events"] = [len(done), done == sorted(done), done[-1:], [e.total for e in events][-1:]]
print(json.dumps(found))
"""


@pytest.fixture
def hub(checkpoint: Callable[[str], Path]) -> Iterator[DownloadHub]:
    """A Hub with one model in shards, and files that a conversion does not need."""
    folder = checkpoint("nemotron-f16")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.gguf").write_bytes(b"GGUF")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"unneeded")
    (folder / "pytorch_model.bin").write_bytes(b"unneeded")
    with DownloadHub(folder, "someone/Small-Nemotron") as hub:
        yield hub


@pytest.fixture
def fetch(hub: DownloadHub, python: PythonServer, tmp_path: Path) -> Callable[..., Any]:
    """Converts a source in a process of its own."""

    def answer(source: str = "someone/Small-Nemotron", **more: str) -> Any:
        words = ("-c", PROGRAM, source, tmp_path)
        run = python.run(words, hub.environment(tmp_path / "cache", **more), tmp_path)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    return answer


def test_open_source_downloads_once(
    hub: DownloadHub, fetch: Callable[..., Any], tmp_path: Path
) -> None:
    found = fetch()
    assert set(found["files"]) == {
        "README.md",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    path = Path(found["path"])
    assert path.name == "Small-Nemotron-582K-F16.gguf"
    assert open_gguf(path).get("general.name") == "Small Nemotron"
    assert open_gguf(path).get("general.license") == "mit"
    count, rising, done, total = found["events"]
    assert count > 0
    assert rising
    assert done == total
    first = path.read_bytes()
    hub.requests.clear()
    offline = fetch(HF_HUB_OFFLINE="1")
    assert offline["files"] == found["files"]
    assert Path(offline["path"]).read_bytes() == first
    assert not hub.requests
    assert fetch()["files"] == found["files"]
    assert not [path for method, path, _ in hub.requests if method == "GET" and "resolve" in path]


@pytest.fixture
def command(hub: DownloadHub, python: PythonServer, tmp_path: Path) -> Callable[..., Any]:
    """Gives the JSON document that a command of the command line gives."""

    def answer(*arguments: object) -> Any:
        words = ("-m", "minitron_cli", *arguments, "--json")
        run = python.run(words, hub.environment(tmp_path / "cache"), tmp_path)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    return answer


def test_commands_take_names_of_checkpoints(
    hub: DownloadHub, command: Callable[..., Any], tmp_path: Path
) -> None:
    source, out = "someone/Small-Nemotron", tmp_path / "out"
    out.mkdir()
    convert = ("convert", source, "--revision", "v1", "--outtype", "q4_0", "-o", out)
    planned = command(*convert, "--dry-run")
    assert not list(out.iterdir())
    weights = [part for _, path, part in hub.requests if path.endswith(".safetensors")]
    assert set(weights) == {"bytes=0-100000"}
    done = command(*convert)
    for key in ("paths", "bytes", "tensors", "model", "memory_bytes"):
        assert planned[key] == done[key]
    assert [Path(path).name for path in done["paths"]] == ["Small-Nemotron-582K-Q4_0.gguf"]
    hub.requests.clear()
    assert command(*convert, "--dry-run")["bytes"] == done["bytes"]
    assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]
    checked = command("verify", f"{source}@v1", done["paths"][0], "--no-logits")
    assert checked["passed"]


def test_open_source_takes_a_revision(hub: DownloadHub, fetch: Callable[..., Any]) -> None:
    assert "path" in fetch("someone/Small-Nemotron@v1")
    assert any("/revision/v1" in path for _, path, _ in hub.requests)
    found = fetch("someone/Small-Nemotron@v9")
    assert found["error"] == "NotFound"
    assert "v9" in found["message"]


def test_open_source_resumes_a_cut_download(hub: DownloadHub, fetch: Callable[..., Any]) -> None:
    hub.cut = "model-00001-of-00002.safetensors"
    with (hub.folder / hub.cut).open("ab") as file:
        file.write(bytes(40 << 20))  # the Hub's library writes, and resumes, by pieces of 10 MB
    found = fetch()
    if "error" in found:
        assert found["error"] == "Denied"
        found = fetch()
    assert "path" in found
    assert any(part.startswith("bytes=") and part != "bytes=0-" for _, _, part in hub.requests)


def test_open_source_sends_the_token(hub: DownloadHub, fetch: Callable[..., Any]) -> None:
    hub.token = "hf_secret"
    found = fetch()
    assert found["error"] in ("NotFound", "Denied")
    assert "HF_TOKEN" in found["hint"]
    assert "path" in fetch(HF_TOKEN="hf_secret")


def test_open_source_explains_gated_repositories(
    hub: DownloadHub, fetch: Callable[..., Any]
) -> None:
    hub.gated = True
    found = fetch()
    assert found["error"] == "Denied"
    assert "gated" in found["message"]


def test_open_source_explains_missing_repositories_and_networks(
    hub: DownloadHub, fetch: Callable[..., Any]
) -> None:
    assert fetch("someone/else")["error"] == "NotFound"
    offline = fetch(HF_HUB_OFFLINE="1")
    assert offline["error"] == "Denied"
    assert "cache" in offline["message"]
    hub.close()
    assert fetch()["error"] == "Denied"


def test_open_source_without_safetensors_wants_torch_files(
    hub: DownloadHub, fetch: Callable[..., Any], tmp_path: Path
) -> None:
    for path in hub.folder.glob("model*"):
        path.unlink()
    found = fetch()
    assert found["error"] == "Damaged"
    assert "pytorch_model.bin" in found["message"]
    (hub.folder / "pytorch_model.bin").unlink()
    shutil.rmtree(tmp_path / "cache")
    assert fetch()["error"] == "NotFound"


def test_open_source_takes_folders_as_they_are(tmp_path: Path) -> None:
    assert open_source(str(tmp_path)) == Source(tmp_path)
    assert open_source("absent") == Source(Path("absent"))
    assert open_source("a/b/c") == Source(Path("a/b/c"))


def test_open_source_checks_the_space_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_core.errors import OutOfResources

    files = {"config.json": 1, "model.safetensors": 10**18}
    with pytest.raises(OutOfResources, match="1000000000000000001"):
        _choose("a/b", files)
    with pytest.raises(NotFound, match=r"config\.json"):
        _choose("a/b", {"model.safetensors": 1})

"""GGUF models by name, from a server on this machine: which file owner/name[:LEVEL] is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.download_hub import DownloadHub
from helpers.python_server import Ended, PythonServer
from helpers.support import EXAMPLES
from minitron_cli.inputs import folder_for_results
from minitron_convert.hub.download import Repository
from minitron_convert.hub.models import HubModel, parse_model
from minitron_core.errors import NotFound

ROOT = Path(__file__).parents[2]
NAME = "someone/Nano-GGUF"

# Environment variables are read when huggingface_hub is imported: each use is a new process.
PROGRAM = """
import json, sys
from minitron_cli.inputs import folder_for_results
from minitron_core.errors import MinitronError
from minitron_convert.hub.models import parse_model
answers = []
for text in sys.argv[1:]:
    events = []
    try:
        path = parse_model(text).download(events.append)
        bytes = [event.done for event in events]
        answers.append({"path": str(path), "bytes": max(bytes, default=0)})
    except MinitronError as error:
        name = type(error).__name__
        answers.append({"error": name, "message": str(error), "hint": error.hint})
print(json.dumps(answers))
"""


@pytest.fixture
def hub(nano_llama: Path, tmp_path: Path) -> Iterator[DownloadHub]:
    """A Hub with two levels of a model, one of them in shards, and files that are not models."""
    folder = tmp_path / "hub"
    (folder / "BF16").mkdir(parents=True)
    shutil.copy(nano_llama, folder / "Nano-F16.gguf")
    for number in (1, 2):
        (folder / "BF16" / f"Nano-BF16-0000{number}-of-00002.gguf").write_bytes(b"GGUF%d" % number)
    (folder / "Nano.imatrix.gguf").write_bytes(b"GGUF")
    (folder / "README.md").write_text("a model\n")
    with DownloadHub(folder, NAME) as hub:
        yield hub


@pytest.fixture
def run(python: PythonServer, tmp_path: Path) -> Callable[..., Ended]:
    """Runs Python in a process of its own that takes a server for the Hub."""

    def answer(hub: DownloadHub, *words: object, **more: str) -> Ended:
        return python.run(words, hub.environment(tmp_path / "cache", **more), tmp_path)

    return answer


@pytest.fixture
def fetch(hub: DownloadHub, run: Callable[..., Ended]) -> Callable[..., Any]:
    def answer(*names: str, **more: str) -> Any:
        ran = run(hub, "-c", PROGRAM, *names, **more)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return answer


def test_hub_model_downloads_a_level_once(hub: DownloadHub, fetch: Callable[..., Any]) -> None:
    one, shards, none, missing = fetch(f"{NAME}:f16", f"{NAME}@v1:BF16", NAME, f"{NAME}:Q2_K")
    assert Path(one["path"]).name == "Nano-F16.gguf"
    assert one["bytes"] == (hub.folder / "Nano-F16.gguf").stat().st_size
    first = Path(shards["path"])
    assert first.name == "Nano-BF16-00001-of-00002.gguf"
    assert first.with_name("Nano-BF16-00002-of-00002.gguf").read_bytes() == b"GGUF2"
    assert missing["error"] == "NotFound" and "no level Q2_K" in missing["message"]
    for answer in (missing, none):
        assert "BF16, F16" in answer["hint"], answer
    hub.requests.clear()
    (again,) = fetch(f"{NAME}:F16")
    assert again["path"] == one["path"]
    assert not [path for method, path, _ in hub.requests if method == "GET" and "resolve" in path]


def test_hub_model_works_from_the_cache_offline(
    hub: DownloadHub, fetch: Callable[..., Any]
) -> None:
    fetched, shards = fetch(f"{NAME}:F16", f"{NAME}:BF16")
    Path(shards["path"]).with_name("Nano-BF16-00002-of-00002.gguf").unlink()
    hub.requests.clear()
    offline, cut, other = fetch(f"{NAME}:F16", f"{NAME}:BF16", f"{NAME}:Q2_K", HF_HUB_OFFLINE="1")
    assert offline["path"] == fetched["path"]
    assert cut["error"] == "Denied" and "lacks 1 shard of" in cut["message"]
    assert other["error"] == "Denied" and "there are BF16, F16" in other["hint"]
    assert not hub.requests
    hub.close()
    unreachable, never_seen = fetch(f"{NAME}:F16", "someone/else:F16")
    assert unreachable["path"] == fetched["path"]
    assert never_seen["error"] == "Denied" and "cannot be reached" in never_seen["message"]


def test_commands_take_names_of_hub_models(
    hub: DownloadHub, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    """A header needs no download; a token opens the door and is never shown."""
    hub.token = "hf_secret"
    command = ("-m", "minitron_cli")
    header = run(hub, *command, "inspect", f"{NAME}:F16", "--json", HF_TOKEN="hf_secret")
    assert json.loads(header.stdout)["bytes"] == (hub.folder / "Nano-F16.gguf").stat().st_size
    assert not list((tmp_path / "cache").rglob("*.gguf"))
    words = ("generate", f"{NAME}:F16", "The", "-n", "4", "--json", "--threads", "1")
    told = run(hub, *command, *words, HF_TOKEN="hf_secret")
    assert len(json.loads(told.stdout)["tokens"]) == 4
    refused = run(hub, *command, "inspect", f"{NAME}:F16", HF_TOKEN="hf_wrong_secret")
    assert refused.returncode in (3, 7) and refused.stdout == ""
    assert refused.stderr.startswith("error: ") and len(refused.stderr.splitlines()) <= 2
    assert not any("secret" in text for text in (header.stderr, told.stderr, refused.stderr))


def test_commands_take_names_with_the_hubs_address(
    hub: DownloadHub, run: Callable[..., Ended]
) -> None:
    """As Ollama's and llama.cpp's users copy them; pull says what came."""
    pull = ("-m", "minitron_cli", "pull", "--json")
    told = json.loads(run(hub, *pull, f"hf.co/{NAME}:F16").stdout)
    sha256 = hashlib.sha256((hub.folder / "Nano-F16.gguf").read_bytes()).hexdigest()
    assert [file["sha256"] for file in told["files"]] == [sha256]
    assert told["model"] == f"{NAME}:F16" and told["path"].endswith("Nano-F16.gguf")
    inspect = ("-m", "minitron_cli", "inspect", f"https://huggingface.co/{NAME}:F16", "--json")
    described = run(hub, *inspect, HF_HUB_OFFLINE="1")
    assert json.loads(described.stdout)["level"] == "F16", described.stderr


def test_advise_compares_the_files_of_a_repository(
    hub: DownloadHub, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    for number in (1, 2):
        (hub.folder / "BF16" / f"Nano-BF16-0000{number}-of-00002.gguf").unlink()
    shutil.copy(hub.folder / "Nano-F16.gguf", hub.folder / "Nano-Q8_0.gguf")
    advise = ("-m", "minitron_cli", "advise", NAME, "--vram", "2", "--ctx", "512", "--json")
    ran = run(hub, *advise)
    levels = json.loads(ran.stdout)["levels"]
    assert {level["path"] for level in levels} == {f"{NAME}:F16", f"{NAME}:Q8_0"}
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_commands_take_checkpoints_on_the_hub(tmp_path: Path, run: Callable[..., Ended]) -> None:
    """Pull fetches one whole; a level that needs a matrix is refused before that."""
    minitron = ("-m", "minitron_cli")
    with DownloadHub(EXAMPLES / "nano-llama", NAME) as hub:
        refused = run(hub, *minitron, "quantize", NAME, "IQ2_M")
        assert refused.returncode == 5 and "-f TEXT" in refused.stderr, refused.stderr
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
        made = run(hub, *minitron, "quantize", f"hf.co/{NAME}", "Q4_0")
        assert made.returncode == 0, made.stderr
        pulled = json.loads(run(hub, *minitron, "pull", NAME, "--json").stdout)
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["Nano-GGUF-8.0M-Q4_0.gguf"]
    again = run(hub, *minitron, "quantize", NAME, "Q4_0", HF_HUB_OFFLINE="1")
    assert again.returncode == 0 and "there already" in again.stderr, again.stderr
    assert "model.safetensors" in [Path(file["path"]).name for file in pulled["files"]]


def test_open_headers_downloads_no_weights(
    hub: DownloadHub, tmp_path: Path, run: Callable[..., Ended]
) -> None:
    plan = ("-m", "minitron_cli", "quantize", NAME, "Q4_0", "--dry-run", "--json")
    (hub.folder / "BF16" / "Nano-BF16-00001-of-00002.gguf").unlink()
    (hub.folder / "BF16" / "Nano-BF16-00002-of-00002.gguf").unlink()
    model = json.loads(run(hub, *plan).stdout)
    with DownloadHub(EXAMPLES / "nano-llama", NAME) as checkpoints:
        checkpoint = json.loads(run(checkpoints, *plan).stdout)
    assert model["weights_encoded"] == checkpoint["weights_encoded"] > 7e6
    cached = [path.name for path in (tmp_path / "cache").rglob("*")]
    assert not any(name.endswith((".gguf", ".safetensors")) for name in cached)


def test_folder_for_results_is_beside_the_source_where_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folder_for_results(Path(f"{NAME}:F16")) == Path()
    assert folder_for_results(tmp_path / "model.gguf") == tmp_path
    (tmp_path / "checkpoint").mkdir()
    assert folder_for_results(tmp_path / "checkpoint") == tmp_path
    monkeypatch.setattr(os, "access", lambda path, _mode: path != tmp_path)
    assert folder_for_results(tmp_path / "model.gguf") == Path()


def test_parse_model_takes_only_names(tmp_path: Path) -> None:
    for text in (str(tmp_path), "out/model.gguf", "model", "a/b/c", "a/b/c:Q4_K_M"):
        assert parse_model(text) is None
    assert parse_model("a/b") == HubModel(Repository("a/b"))
    assert parse_model("a/b@v2:Q4_K_M") == HubModel(Repository("a/b", "v2"), "Q4_K_M")


def test_hub_model_finds_the_file_of_a_level() -> None:
    files = ["a-Q4_K_M.gguf", "a-Q8_0.gguf", "b/b-Q8_0.gguf", "mmproj-F16.gguf", "notes.txt"]
    model = HubModel(Repository("x/y"))
    assert model._choose(files) == ["a-Q4_K_M.gguf"]
    assert HubModel(Repository("x/y"), "b-q8_0")._choose(files) == ["b/b-Q8_0.gguf"]
    with pytest.raises(NotFound, match="2 models of level Q8_0"):
        HubModel(Repository("x/y"), "Q8_0")._choose(files)
    assert model._choose(["only-IQ2_M.gguf"]) == ["only-IQ2_M.gguf"]
    with pytest.raises(NotFound, match="no GGUF model"):
        model._choose(["mmproj-F16.gguf", "model.safetensors"])

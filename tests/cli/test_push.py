"""minitron push against a server on this machine that takes uploads as the Hub does."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.python_server import Ended, PythonServer
from helpers.upload_hub import UploadHub
from minitron_core.gguf import GgufWriter, KeyValue, ValueType
from minitron_quant.mixed_precision.build_mix import sibling

TOKEN = "hf_marked_token_of_this_test"


@pytest.fixture
def hub() -> Iterator[UploadHub]:
    with UploadHub(TOKEN) as hub:
        yield hub


@pytest.fixture
def folder(nano_llama: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(nano_llama, folder / "nano-F16.gguf")
    (folder / "README.md").write_text("# A card\n")
    (folder / ".nano.quantize.journal").write_text("not for others")
    (folder / "notes.txt").write_text("not for others either")
    kind = [KeyValue.of("general.type", ValueType.STRING, "covariance")]
    with GgufWriter(folder / "nano.covariance.gguf", kind, []):
        pass
    return folder


@pytest.fixture
def push(python: PythonServer, hub: UploadHub, folder: Path) -> Callable[..., Ended]:
    """Runs the command with a token, which it never shows."""

    def run(*more: str, token: str = TOKEN) -> Ended:
        environment = hub.environment(
            folder.parent / "home", HF_TOKEN=token, HF_HUB_DISABLE_TELEMETRY="1"
        )
        words = ("-m", "minitron_cli", "push", folder, "me/nano", *more)
        ran = python.run(words, environment, folder.parent)
        assert token not in ran.stdout + ran.stderr
        return ran

    return run


def test_push_uploads_only_what_is_missing(
    hub: UploadHub, folder: Path, push: Callable[..., Ended]
) -> None:
    dry = push("--dry-run", "--json")
    assert dry.returncode == 0, dry.stderr
    assert [f["state"] for f in json.loads(dry.stdout)["files"]] == ["new", "new"]
    assert not hub.created and not hub.commits

    ran = push("--private")
    assert ran.returncode == 0, ran.stderr
    assert hub.created[0]["visibility"] == "private"
    # the card comes last, and nothing that is only for this machine
    assert hub.commits == [["nano-F16.gguf"], ["README.md"]]
    assert hub.files["nano-F16.gguf"] == (folder / "nano-F16.gguf").read_bytes()

    (folder / "README.md").write_text("# Another card\n")
    again = push("--json")
    states = {f["file"]: f["state"] for f in json.loads(again.stdout)["files"]}
    assert states == {"nano-F16.gguf": "there", "README.md": "changed"}
    assert hub.commits[2:] == [["README.md"]]
    assert hub.files["README.md"] == b"# Another card\n"


def test_push_resumes_after_a_break(
    hub: UploadHub, folder: Path, push: Callable[..., Ended]
) -> None:
    shutil.copy(folder / "nano-F16.gguf", folder / "z.gguf")
    with (folder / "z.gguf").open("ab") as file:
        file.write(b"\0" * 32)
    hub.stop_after = 1
    broken = push()
    assert broken.returncode == 7, broken.stderr
    assert "error: " in broken.stderr and "Traceback" not in broken.stderr
    assert "run the command again" in broken.stderr
    assert list(hub.files) == ["nano-F16.gguf"]
    hub.stop_after = None
    assert push().returncode == 0
    assert hub.commits == [["nano-F16.gguf"], ["z.gguf"], ["README.md"]]


def test_push_refuses_a_wrong_token(hub: UploadHub, push: Callable[..., Ended]) -> None:
    refused = push(token="hf_a_wrong_token_of_this_test")
    assert refused.returncode in (3, 7), refused.stderr
    assert refused.stderr.startswith("error: ") and "Traceback" not in refused.stderr
    assert not hub.files


def test_push_refuses_bad_input(
    hub: UploadHub, folder: Path, tmp_path: Path, minitron: Any
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert minitron("push", empty, "me/nano").code == 3
    assert minitron("push", folder, "nano").code == 2


def test_push_uploads_the_recipe_of_a_mix(folder: Path, push: Callable[..., Ended]) -> None:
    # as quantize --size and job files with sizes name it
    recipe = sibling(folder / "nano-3.5bpw.gguf", "types.txt")
    recipe.write_text("output.weight=q6_K\n")
    ran = push("--dry-run", "--json")
    assert recipe.name in [each["file"] for each in json.loads(ran.stdout)["files"]]

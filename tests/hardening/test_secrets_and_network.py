"""No command but those that name the Hub opens a connection, and none lets a token out."""

import shutil
import socket
import traceback
from pathlib import Path
from typing import Any

import pytest

from helpers.small_model import write_small
from helpers.support import EXAMPLES, RECORDED
from minitron_cli.main import COMMANDS, main
from minitron_core.gguf import TYPE_ID
from minitron_quant.mixed_precision import costs

TOKEN = "hf_MarkedTokenThatMustNeverBeSeen0123"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MINITRON_API_KEY", "OPENAI_API_KEY")
HELD_OUT = EXAMPLES / "held-out.txt"
JOB = f"""
[model]
source = "{EXAMPLES}/nano-nemotron"
outtype = "f16"
[quantize]
levels = ["Q8_0"]
[measure]
text = "{HELD_OUT}"
ctx = 64
chunks = 2
[output]
directory = "job"
report = ["md", "html", "csv", "json"]
"""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Tokens everywhere, and no way out: what was tried is in the list."""
    tried: list[Any] = []

    def refuse(_self: socket.socket, address: Any, *_more: Any) -> None:
        tried.append(address)
        raise OSError("this test has no network")

    for name in TOKENS:
        monkeypatch.setenv(name, TOKEN)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    return tried


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sensitivity of few types, and a server that ends as soon as it listens."""
    types = frozenset(TYPE_ID[name] for name in ("q4_0", "q8_0"))
    monkeypatch.setattr(costs, "ENCODABLE", types)
    monkeypatch.setattr(costs, "_ROWS", 32)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)


# push and pull need the Hub for all that they do (tests/cli/test_push.py, with a marked token as
# well, and tests/convert/test_hub_models.py); rpc-server only listens, in builds that have it
ELSEWHERE = {"push", "pull", "rpc-server"}


def commands(model: Path, level: Path, folder: Path) -> list[tuple[object, ...]]:
    """Every command that needs no network, small."""
    imatrix, text = folder / "nano.imatrix.gguf", folder / "text.txt"
    text.write_text(HELD_OUT.read_text()[:8000])
    hellaswag = ("--task", "hellaswag", "--data", RECORDED / "hellaswag.txt", "--limit", 2)
    tiny = write_small(model, folder / "tiny-F16.gguf") if model.exists() else model
    return [
        ("convert", EXAMPLES / "nano-llama", "-o", folder / "again.gguf"),
        ("texts",),
        ("verify", EXAMPLES / "nano-llama", model, "--no-logits"),
        ("quantize", EXAMPLES / "nano-llama", "Q4_0", "-d", folder / "direct"),
        ("imatrix", model, "-f", HELD_OUT, "-o", imatrix, "--chunks", 2, "--ctx", 64),
        ("imatrix-stats", imatrix),
        ("imatrix-merge", imatrix, imatrix, "-o", folder / "merged.gguf"),
        ("quantize", model, "Q4_0", "-d", folder, "--errors", folder / "errors.json"),
        ("quantize", model, "all", "--imatrix", imatrix, "-d", folder, "--dry-run"),
        ("quantize", tiny, "Q5_0", "--gptq", "--text", text, "-d", folder / "gptq"),
        ("sensitivity", tiny, "-f", text, "-c", 64, "--tokens", 64),
        ("quantize", tiny, "--bpw", 6, "--types", "q4_0,q8_0", "--no-verify", "-d", folder),
        ("tasks", level, *hellaswag, "--answers", folder / "answers.jsonl"),
        ("chat", level, "--raw"),
        ("serve", level, "--port", 0),
        ("ppl", level, "--reference", model, "-f", HELD_OUT, "--ctx", 64, "--chunks", 2, "-v"),
        ("generate", level, "The", "-n", 4, "--seed", 1, "--stats"),
        ("bench", level, "-p", 8, "-n", 4, "-r", 1),
        ("inspect", level, "--tensors"),
        ("advise", folder, "--vram", "1G"),
        ("card", folder),
        ("run", folder / "job.toml"),
        ("verify", "--manifest", folder / "nano.manifest.json"),
        ("doctor",),
    ]


def test_every_command_is_tried(tmp_path: Path) -> None:
    tried = {str(words[0]) for words in commands(Path("m"), Path("l"), tmp_path)}
    assert tried | ELSEWHERE == set(COMMANDS)


def test_offline_and_silent_about_tokens(
    alone: list[Any], minitron: Any, small: None, nano_llama: Path, tmp_path: Path
) -> None:
    model, level = tmp_path / "nano-F16.gguf", tmp_path / "nano-Q4_0.gguf"
    shutil.copy(nano_llama, model)
    (tmp_path / "job.toml").write_text(JOB)
    for arguments in commands(model, level, tmp_path):
        ran = minitron(*arguments, *(() if "-v" in arguments else ("--verbose",)))
        assert ran.code == 0, (arguments, ran.err)
        assert TOKEN not in ran.out + ran.err, arguments
    assert alone == []
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    for path in written:
        assert TOKEN.encode() not in path.read_bytes(), path


def test_a_token_stays_out_of_errors(
    alone: list[Any], minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MINITRON_DEBUG", "0")
    for arguments in (
        ("convert", "me/nano", "-o", tmp_path / "x.gguf"),
        ("generate", "me/nano:Q4_K_M", "The"),
        ("generate", tmp_path / TOKEN[:8], "The"),
        ("push", tmp_path, "me/nano"),
    ):
        ran = minitron(*arguments, "--verbose")
        assert ran.code in (3, 7), ran.err
        assert TOKEN not in ran.out + ran.err


def test_a_token_stays_out_of_tracebacks(
    alone: list[Any], minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINITRON_DEBUG", "1")
    for arguments in (("convert", "me/nano"), ("inspect", "me/nano:Q4_0"), ("generate", "x", "y")):
        monkeypatch.setattr("sys.argv", ["minitron", *arguments, "--verbose"])
        with pytest.raises(Exception) as caught:
            main()
        shown = "".join(traceback.format_exception(caught.value))
        assert "Traceback" in shown and TOKEN not in shown

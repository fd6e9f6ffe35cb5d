"""No command but those that name the Hub opens a connection, and none lets a token out."""

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from support import EXAMPLES

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


def commands(model: Path, level: Path, folder: Path) -> list[tuple[object, ...]]:
    """Every command that needs no network, small."""
    imatrix = folder / "nano.imatrix.gguf"
    return [
        ("convert", EXAMPLES / "nano-llama", "-o", folder / "again.gguf"),
        ("verify", EXAMPLES / "nano-llama", model, "--no-logits"),
        ("imatrix", model, "-f", HELD_OUT, "-o", imatrix, "--chunks", 2, "--ctx", 64),
        ("imatrix-stats", imatrix),
        ("imatrix-merge", imatrix, imatrix, "-o", folder / "merged.gguf"),
        ("quantize", model, "Q4_0", "-d", folder, "--errors", folder / "errors.json"),
        ("quantize", model, "all", "--imatrix", imatrix, "-d", folder, "--dry-run"),
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


def test_offline_and_silent_about_tokens(
    alone: list[Any], minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    model, level = tmp_path / "nano-F16.gguf", tmp_path / "nano-Q4_0.gguf"
    shutil.copy(nano_llama, model)
    (tmp_path / "job.toml").write_text(JOB)
    for arguments in commands(model, level, tmp_path):
        ran = minitron(*arguments)
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
    ):
        ran = minitron(*arguments)
        assert ran.code in (3, 7), ran.err
        assert TOKEN not in ran.out + ran.err

"""Long runs of one kind of character, in every pre-tokenizer: an answer or one line, never the end.

The same without commands, and fewer, are in tests/engine/test_tokenization.py.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from helpers.pretokenizers import PRE_TOKENIZERS, RUNS, with_pre_tokenizer
from helpers.small_model import write_small

pytestmark = pytest.mark.harden
LENGTH = 100_000
SMALL = ("--ctx", "64", "--threads", "1", "--gpu-layers", "0")
# what a JSON text cannot hold: bytes beyond U+10FFFF, half of a character, half of a surrogate pair
BYTES = {"beyond Unicode": b"\xf7\xbf\xbf\xbf", "broken": b"\xe6\x97", "surrogate": b"\xed\xa0\x80"}
REFUSALS = (2, 4)  # a prompt too long for the context; a text that the pre-tokenizer cannot take


@pytest.fixture(scope="module")
def small(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(nano_llama, tmp_path_factory.mktemp("small") / "small.gguf")


def texts() -> dict[str, bytes]:
    """A run of each kind between two lines, and one followed by a digit, by their names."""
    periods = {name: period.encode() for name, period in RUNS.items()} | BYTES
    runs = {
        name: period * (LENGTH // len(period.decode(errors="replace")))
        for name, period in periods.items()
    }
    found = {name: b"The\n" + run + b"\nend\n" for name, run in runs.items()}
    return found | {f"{name}, 1": b"The\n" + run + b"1\n" for name, run in runs.items()}


def outcomes(commands: dict[str, list[str]]) -> dict[str, Any]:
    """What became of commands that one process runs in turn; it must come to the last."""
    process = subprocess.run(
        [sys.executable, "-m", "hardening.in_one_process"],
        input="".join(f"{json.dumps(words)}\n" for words in commands.values()),
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        timeout=1800,
    )
    answers = map(json.loads, process.stdout.splitlines())
    found = dict(zip(commands, answers, strict=False))
    assert list(found) == list(commands), (list(commands)[len(found)], process.stderr[-2000:])
    return found


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_commands_answer_long_runs(name: str, small: Path, tmp_path: Path) -> None:
    model = with_pre_tokenizer(small, tmp_path / "model.gguf", name)
    commands: dict[str, list[str]] = {}
    for number, (run, text) in enumerate(texts().items()):
        path = tmp_path / f"{number}.txt"
        path.write_bytes(text)
        given = [str(model), "-f", str(path), *SMALL]
        commands[f"generate, {run}"] = ["generate", *given, "-n", "1", "--no-stream"]
        if run.endswith(", 1"):
            continue
        commands[f"ppl, {run}"] = ["ppl", *given, "--chunks", "2", "-q"]
        output = str(tmp_path / f"{number}.imatrix.gguf")
        commands[f"imatrix, {run}"] = ["imatrix", *given, "-q", "--chunks", "2", "-o", output]
    for command, outcome in outcomes(commands).items():
        assert outcome["code"] in (0, *REFUSALS), (command, outcome)
        if outcome["code"]:
            assert re.fullmatch(r"error: .+\n(hint: .+\n)?", outcome["err"]), (command, outcome)


@contextmanager
def server(model: Path) -> Iterator[HTTPConnection]:
    words = ["serve", str(model), "--port", "0", *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-m", "minitron_cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = urlparse(process.stdout.readline().strip()).netloc
        with closing(HTTPConnection(address, timeout=120)) as connection:
            yield connection
    finally:
        process.terminate()
        process.communicate(timeout=30)


def asked(connection: HTTPConnection, prompt: str) -> tuple[int, Any]:
    body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": 1, "temperature": 0})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_serve_lives_through_long_runs(name: str, small: Path, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    model = with_pre_tokenizer(small, tmp_path / "model.gguf", name)
    prompts = {run: period * (LENGTH // len(period)) for run, period in RUNS.items()}
    prompts |= {f"{run}, 1": f"{text}1" for run, text in prompts.items()}
    prompts["lone surrogate"] = "\ud800" * LENGTH
    with server(model) as connection:
        for run, prompt in prompts.items():
            status, document = asked(connection, prompt)
            # 200 where the small vocabulary has no tokens for what the run is made of
            answered = document.get("choices") if status == 200 else document["error"]["message"]
            assert status in (200, 400) and answered, (run, status, document)
        status, document = asked(connection, "The")
        assert status == 200 and document["choices"][0]["finish_reason"] == "length"

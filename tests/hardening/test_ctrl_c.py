"""Ctrl-C in long commands, by the clock: answered within 0.3 seconds, ended within 2."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.support import EXAMPLES, RECORDED

ANSWER_SECONDS, END_SECONDS = 0.3, 2.0
IMATRIX = RECORDED / "nano-llama.imatrix.gguf"
JOB = """
[model]
source = "{examples}/nano-llama"
outtype = "f16"
[calibration]
text = ["{examples}/calibration.txt"]
[output]
directory = "out"
"""


@pytest.fixture(scope="module")
def long_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "long.txt"
    path.write_text((EXAMPLES / "calibration.txt").read_text() * 4)
    return path


def words_of(name: str, model: Path, text: Path, folder: Path) -> list[object]:
    if name == "run":
        (folder / "job.toml").write_text(JOB.format(examples=EXAMPLES))
        return ["run", folder / "job.toml"]
    made: list[object] = ["--imatrix", IMATRIX, "-d", folder, "--threads", 1]
    return {
        "imatrix": ["imatrix", model, "-f", text, "-o", folder / "made"],
        "ppl": ["ppl", model, "-f", text, "--ctx", 1024],
        "sensitivity": ["sensitivity", model, "-f", text, "-o", folder / "made"],
        "quantize": ["quantize", model, "all", *made],
        "quantize by ggml": ["quantize", model, "Q8_0", "IQ1_S", *made],
    }[name]


def wait_for(process: "subprocess.Popen[str]", event: str) -> float:
    """When a line of progress says so."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("{") and json.loads(line)["event"] == event:
            return time.monotonic()
    pytest.fail(f"ended without {event}")


@pytest.mark.harden
@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize(
    "name", ["imatrix", "ppl", "sensitivity", "quantize", "quantize by ggml", "run"]
)
def test_ctrl_c_is_answered_and_obeyed(
    name: str,
    presses: int,
    nano_llama: Path,
    long_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name == "quantize by ggml":  # which builds tables for seconds
        monkeypatch.setenv("MINITRON_NATIVE", "0")
    words = words_of(name, nano_llama, long_text, tmp_path)
    command = [sys.executable, "-m", "minitron_cli", *map(str, words), "--progress", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(process, "progress")
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        answered = wait_for(process, "stopping") - pressed
        if presses == 2:
            time.sleep(0.25)  # nearer ones count as one press that came twice
            process.send_signal(signal.SIGINT)
        left = process.communicate()[1]
        ended = time.monotonic() - pressed
    print(f"\nCTRL-C {name} answered after {answered:.2f} s, ended after {ended:.2f} s")  # noqa: T201
    # a second one may meet a process that has ended its work and has no handler any more
    assert process.returncode in ((130,) if presses == 1 else (130, -signal.SIGINT))
    assert "Traceback" not in left
    assert answered < ANSWER_SECONDS and ended < END_SECONDS

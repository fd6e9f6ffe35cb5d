"""Ctrl-C in long commands: what is kept is said, and the command that goes on goes on."""

import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, RECORDED, beginning, fails
from minitron_cli.output import Output
from minitron_cli.progress.displays import Display
from minitron_core import stop
from minitron_core.gguf import TYPE_ID
from minitron_core.progress import Event
from minitron_quant.mixed_precision import costs

JOB = """
[model]
source = "{examples}/nano-llama"
outtype = "f16"
[quantize]
levels = ["Q4_0"]
[measure]
text = "{examples}/held-out.txt"
ctx = 64
chunks = 4
divergence = false
[output]
directory = "out"
report = ["csv"]
"""


@pytest.fixture
def press_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Send Ctrl-C when so many events of a stage have come with work done; once."""

    def prepare(stage: str, events: int) -> None:
        seen: list[Event] = []
        listen = Display.listen

        def press(display: Display, event: Event) -> None:
            listen(display, event)
            seen.extend([event] if event.stage == stage and event.done else [])
            if len(seen) == events:
                seen.extend([event])
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Display, "listen", press)

    return prepare


def words_of(name: str, model: Path, folder: Path) -> list[object]:
    if name == "run":
        (folder / "job.toml").write_text(JOB.format(examples=EXAMPLES))
        return ["run", folder / "job.toml"]
    text = beginning(folder, 6000)
    small: list[object] = ["-f", text, "--ctx", 64, "--threads", 1]
    made, matrix = folder / "made", RECORDED / "nano-llama.imatrix.gguf"
    four: list[object] = [*small, "-b", 64, "--chunks", 4]
    return {
        "imatrix": ["imatrix", model, *four, "--save-every", 1, "-o", made],
        "ppl": ["ppl", model, *four, "--resume", made],
        "quantize": ["quantize", model, "Q4_0", "Q8_0", "-d", folder],
        "sensitivity": [
            "sensitivity",
            model,
            *small,
            "--tokens",
            64,
            "--imatrix",
            matrix,
            "-o",
            made,
        ],
    }[name]


KEPT = {
    "imatrix": ("imatrix", r"2 of 4 chunks are kept in \S*made"),
    "ppl": ("perplexity", r"the scores so far are kept in \S*made"),
    "quantize": ("quantize", r"\d+ of 22 tensors of 2 levels are kept in \S+"),
    "sensitivity": ("sensitivity", r"2 of \d+ measurements are kept in \S*made"),
    "run": ("perplexity", r"the scores so far are kept.*finished stages: convert, quantize"),
}


@pytest.mark.parametrize("name", KEPT)
def test_ctrl_c_names_what_is_kept_and_the_command_that_goes_on(
    name: str,
    minitron: Any,
    press_after: Any,
    short_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "ENCODABLE", frozenset(TYPE_ID[t] for t in ("q4_0", "q8_0")))
    monkeypatch.setattr(costs, "_ROWS", 32)
    stage, kept = KEPT[name]
    press_after(stage, 2)
    words = words_of(name, short_llama, tmp_path)
    stopped = minitron(*words)
    assert stopped.code == 130
    assert re.search(f"^stopped: .*{kept}", stopped.err, re.MULTILINE), stopped.err
    command = re.search("^continue with: minitron (.*)$", stopped.err, re.MULTILINE)
    assert command is not None, stopped.err
    if name in ("imatrix", "sensitivity"):
        fails(minitron(*words), 1, "an earlier run for", "--resume continues it")
    done = minitron(*shlex.split(command[1]))
    assert done.code == 0, done.err
    assert "Traceback" not in stopped.err + done.err


def test_ctrl_c_says_that_no_scores_are_kept(
    minitron: Any, press_after: Any, short_llama: Path, tmp_path: Path
) -> None:
    press_after("perplexity", 1)
    ran = minitron("ppl", short_llama, "-f", beginning(tmp_path), "--ctx", 64, "--chunks", 8)
    assert ran.code == 130 and ran.out == ""
    assert "stopped: no scores are kept; with --resume STATE they are" in ran.err
    assert "run it again with: minitron ppl" in ran.err and "continue" not in ran.err


def test_ctrl_c_with_nothing_kept_names_the_command_that_was_given(
    minitron: Any, press_after: Any, short_llama: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    # what --force starts over from is not continued
    made.with_name(".made.state").write_bytes(b"of another run")
    press_after("imatrix", 1)
    words = list(map(str, words_of("imatrix", short_llama, tmp_path)))
    place = words.index("--save-every")
    words[place : place + 2] = ["--force"]
    ran = minitron(*words)
    assert ran.code == 130
    assert f"stopped\nrun it again with: {shlex.join(['minitron', *words])}\n" in ran.err
    assert minitron(*words).code == 0


def test_ctrl_c_puts_the_option_before_the_end_of_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["minitron", "imatrix", "-f", "a b.txt", "--", "-m.gguf"])
    with (
        pytest.raises(KeyboardInterrupt),
        Output().progress(again="--resume"),
        stop.keeping(lambda: "much is kept"),
    ):
        raise KeyboardInterrupt
    told = "stopped: much is kept\ncontinue with: minitron imatrix -f 'a b.txt' --resume -- -m.gguf"
    assert told in capsys.readouterr().err

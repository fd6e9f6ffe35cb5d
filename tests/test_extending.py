"""A newcomer adds things in one place each: the recipes of CONTRIBUTING.md, applied literally.

Their blocks go into a copy of the source; commands that run there know the new things.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.markdown import blocks
from helpers.small_model import write_small
from helpers.support import EXAMPLES, ROOT, with_entry
from minitron_core.gguf import ValueType

PARTS = ("src", "convert", "quant")
Run = Callable[..., str]
Commands = Callable[..., list[str]]
# given as JSON; the answers are divided by what no answer contains
COMMANDS = """
import json, sys
from minitron_cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as left:
        if left.code:
            raise
    sys.stdout.write(chr(0))
"""


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with every recipe applied."""
    folder = tmp_path_factory.mktemp("extended")
    for part in PARTS:
        # with what is compiled already: Python compiles again what a recipe changes
        shutil.copytree(ROOT / part, folder / part)
    applied = 0
    for block in blocks(ROOT / "CONTRIBUTING.md"):
        if block.language != "python" or block.mark is None:
            continue
        path = folder / block.mark
        if path.exists():
            anchor = block.text.splitlines()[0] + "\n"
            source = path.read_text()
            assert source.count(anchor) == 1, f"{block}: not one line {anchor!r}"
            path.write_text(source.replace(anchor, block.text + "\n"))
        else:
            path.write_text(block.text + "\n")
        applied += 1
    assert applied == 5
    return folder


@pytest.fixture
def run(extended: Path, tmp_path: Path) -> Run:
    """Run Python in the copy, in a folder of its own; returns stdout."""

    def python(*arguments: object) -> str:
        paths = os.pathsep.join(str(extended / part) for part in PARTS)
        environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200", "NO_COLOR": "1"}
        command = [sys.executable, *map(str, arguments)]
        ran = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return python


@pytest.fixture
def minitron(run: Run) -> Commands:
    """Run commands in the copy, one after another in a process; returns the stdout of each."""

    def answers(*commands: tuple[object, ...]) -> list[str]:
        words = json.dumps([list(map(str, command)) for command in commands])
        return run("-c", COMMANDS, words).split("\0")[:-1]

    return answers


@pytest.fixture(scope="module")
def model(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(nano_llama, tmp_path_factory.mktemp("small") / "model-F16.gguf")


def job(folder: Path, **sections: str) -> Path:
    """A job file of the bundled model with the given sections."""
    path = folder / "job.toml"
    text = f'[model]\nsource = "{EXAMPLES / "nano-llama"}"\n'
    path.write_text(text + "".join(f"[{name}]\n{body}\n" for name, body in sections.items()))
    return path


def test_architecture_is_one_record(minitron: Commands, run: Run, tmp_path: Path) -> None:
    checkpoint = tmp_path / "tern"
    shutil.copytree(EXAMPLES / "nano-llama", checkpoint)
    config: dict[str, Any] = json.loads((checkpoint / "config.json").read_text())
    config["architectures"] = ["TernForCausalLM"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    (answer,) = minitron(("convert", checkpoint, "--dry-run", "--json"))
    plan = json.loads(answer)
    assert plan["architecture"] == "llama" and plan["tensors"] > 50
    assert "| TernForCausalLM | llama | Tern-1B |" in run("-m", "minitron_convert.families")


def test_level_is_one_row(minitron: Commands, model: Path, tmp_path: Path) -> None:
    told, answer, plan = minitron(
        ("quantize", "--help"),
        ("quantize", model, "q8_tern", "-d", tmp_path, "--json"),
        ("run", job(tmp_path, quantize='levels = ["Q8_TERN"]'), "--dry-run"),
    )
    assert "Q8_TERN" in told
    (made,) = json.loads(answer)["levels"]
    assert made["level"] == "Q8_TERN" and Path(made["path"]).name == "model-Q8_TERN.gguf"
    assert "Q8_TERN.gguf" in plan


def test_task_is_one_module(minitron: Commands, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "tern.tsv"
    data.write_text("The house\tstood\txylophone\nThe old\tman\tqwerty\n")
    sections = {"quantize": 'levels = ["Q8_0"]', "tasks": 'tern = "tern.tsv"'}
    told, answer, plan = minitron(
        ("tasks", "--help"),
        ("tasks", model, "--task", "tern", "--data", data, "--json"),
        ("run", job(tmp_path, **sections), "--dry-run"),
    )
    assert "tern" in told
    assert json.loads(answer)["rows"][0]["questions"] == 2
    assert "tern.tsv" in plan


def test_sampler_option_is_one_row(
    minitron: Commands, run: Run, model: Path, tmp_path: Path
) -> None:
    for told in minitron(("generate", "--help"), ("chat", "--help")):
        assert "--tern-bonus" in told
    key = "general.sampling.tern_bonus"
    recommends = with_entry(model, tmp_path / "tern.gguf", key, ValueType.FLOAT32, 0.25)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from minitron_cli.server.prepare import completion\n"
        "from minitron_engine.llama.settings import ModelSettings\n"
        "from minitron_engine.loading import open_model\n"
        "with open_model(ModelSettings(Path(sys.argv[1]))) as model:\n"
        "    for body in ({}, {'tern_bonus': 0.5}):\n"
        "        request = completion({'prompt': 'The', **body}, model)\n"
        "        print(request.settings[0].sampling.tern_bonus)"
    )
    assert run("-c", code, recommends).split() == ["0.25", "0.5"]


def test_measure_is_one_field(minitron: Commands, model: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text((EXAMPLES / "held-out.txt").read_text()[:4000])
    given = ("ppl", tmp_path / "model-Q4_0.gguf", "--reference", model, "-f", text)
    quantized = ("quantize", model, "Q4_0", "-d", tmp_path)
    _, table, answer = minitron(quantized, (*given, "--format", "md"), (*given, "--json"))
    assert "KLD 90 %" in table
    *_, row = json.loads(answer)["rows"]
    assert row["kld_tern"] == row["kld_p90"] > 0

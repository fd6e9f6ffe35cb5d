"""What people come for, by following README.md word for word, on the bundled model in small."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.markdown import blocks
from helpers.support import ROOT
from helpers.upload_hub import UploadHub
from minitron_core.gguf import open_gguf
from minitron_quant.levels import level_of

README = ROOT / "README.md"
TOKEN = "hf_token_of_this_test"


def commands(mark: str | None) -> list[str]:
    """The commands of README's first blocks: those that run here, or those for the Hub."""
    found = [b for b in blocks(README) if b.language == "sh" and b.mark == mark]
    return list(found[0].commands())


@pytest.fixture
def shell(tmp_path: Path) -> Any:
    """Run a line of README in a shell that has a `minitron`; what it says is returned."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    program = binaries / "minitron"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m minitron_cli "$@"\n')
    program.chmod(0o755)
    paths = os.pathsep.join(str(ROOT / part) for part in ("convert", "quant", "src"))
    home = {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    path = {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": paths}

    def run(line: str, said: str = "", **more: str) -> str:
        ran = subprocess.run(
            line,
            shell=True,
            env=os.environ | path | home | more,
            input=said,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, f"{line}\n{ran.stderr}"
        return ran.stdout

    return run


def test_readme_leads_to_the_five_goals(workshop: Path, shell: Any) -> None:
    one, every, card_of_6_gb, chat, publish = commands(None)
    shell(one)
    assert level_of(open_gguf(next((workshop / "examples").glob("*-Q4_K_M.gguf")))) == "Q4_K_M"

    table = shell(every)
    assert table.startswith("Quant") and "PPL" in table and "KLD" in table
    assert (workshop / "examples" / "out" / "report.json").exists()

    advice = shell(card_of_6_gb)
    assert "of 6.00 GiB on the GPU" in advice and "Next: minitron generate" in advice
    assert "Q8_0 is the best of the levels" in advice

    assert len(shell(chat, said="The old house stood\n").split()) > 3

    shell(publish)
    text = (workshop / "examples" / "out" / "README.md").read_text()
    assert "llama-cli -hf me/nano:Q4_K_M" in text and "| KLD |" in text
    assert "(./report.svg)" in text
    (push,) = commands("hub")
    with UploadHub(TOKEN) as hub:
        shell(push, HF_ENDPOINT=hub.url)
        assert {"README.md", "report.svg", "report.json", "Nano-Llama-8.0M-Q4_K_M.gguf"} <= set(
            hub.files
        )
    assert json.loads(shell(f"{card_of_6_gb.partition('#')[0]} --json"))["choice"]

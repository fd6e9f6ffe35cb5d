"""The start of a command: what it loads, and when Python looks for garbage."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES
from minitron_core.kernels import kernels

# a process of its own: what is loaded is what this command needed
PROGRAM = """
import gc, json, sys
from minitron_cli.startup import main
try:
    main()
finally:
    print(json.dumps({"collects": gc.isenabled(), "modules": list(sys.modules)}), file=sys.stderr)
"""


def loaded_by(*words: object) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words), "-q"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip()
    seen: dict[str, Any] = json.loads(done.stderr)
    return seen


def test_main_collects_garbage_again_and_loads_little_for_a_token(nano_llama: Path) -> None:
    seen = loaded_by("generate", nano_llama, "Once", "-n", 1, "--temp", 0, "--threads", 1)
    assert seen["collects"]
    unneeded = {"jinja2", "rich", "huggingface_hub", "secrets", "socket"}
    if kernels().library is not None:  # else numpy looks for the likeliest token
        unneeded.add("numpy")
    assert not unneeded & {*seen["modules"]}


@pytest.mark.parametrize("command", ["quantize", "imatrix", "ppl"])
def test_a_command_loads_only_its_part_of_the_quantizer(
    command: str, nano_llama: Path, tmp_path: Path
) -> None:
    text = EXAMPLES / "held-out.txt", "--ctx", 64, "--chunks", 1
    words = {
        "quantize": ("Q8_0", "-d", tmp_path),
        "imatrix": ("-f", *text, "-o", tmp_path / "m.imatrix.gguf"),
        "ppl": ("-f", *text),
    }
    own = {
        "quantize": {"quantize"},
        "imatrix": {"imatrix", "perplexity"},
        "ppl": {"perplexity"},
    }
    modules = loaded_by(command, nano_llama, *words[command])["modules"]
    parts = {name.split(".")[1] for name in modules if name.startswith("minitron_quant.")}
    assert own[command] <= parts
    assert not {"gptq", "mixed_precision", "perplexity", "tasks", "bench"} & parts - own[command]

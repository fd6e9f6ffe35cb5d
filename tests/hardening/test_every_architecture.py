"""Every architecture's tiny checkpoint goes from a checkpoint to an answer, command by command."""

from pathlib import Path
from typing import Any

import pytest

from helpers.support import beginning
from helpers.tiny_checkpoints import NAMES, make_checkpoint

# experts that are in MXFP4 are quantized already
MORE = {"gpt-oss": ("--allow-requantize",)}


@pytest.mark.harden
@pytest.mark.parametrize("name", NAMES)
def test_architecture_is_quantized_and_answers(name: str, minitron: Any, tmp_path: Path) -> None:
    # llama.cpp looks for the special tokens of Phi-3 in models of that name
    checkpoint = make_checkpoint(name, tmp_path).rename(tmp_path / "tiny")
    model, matrix, text = tmp_path / "tiny-F32.gguf", tmp_path / "m.gguf", beginning(tmp_path, 3000)
    levels = ("IQ2_M", "Q4_K_M")
    commands = (
        ("convert", checkpoint, "--outtype", "f32", "-o", model),
        ("imatrix", model, "-f", text, "-c", 64, "--chunks", 4, "-o", matrix),
        ("quantize", model, *levels, "--imatrix", matrix, "-d", tmp_path, *MORE.get(name, ())),
        *(
            (
                "generate",
                tmp_path / f"tiny-{level}.gguf",
                "The old house",
                "-n",
                4,
                "-c",
                64,
                "--json",
            )
            for level in levels
        ),
    )
    for command in commands:
        ran = minitron(*command)
        assert ran.code == 0, (command[0], ran.err)
    assert ran.document["tokens"]

"""Every architecture: from a checkpoint to an answer, and with junk in any place of its config."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.support import beginning
from helpers.tiny_checkpoints import NAMES, make_checkpoint
from minitron_convert.architectures import read_model
from minitron_convert.checkpoint.folder import open_checkpoint
from minitron_core.errors import MinitronError

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


JUNK = (None, True, -1, 0, 3, 2.5, 1e40, "x", [], ["x"], [1], {}, {"x": 1})


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place within a document, as what holds it and the key; of lists the first."""
    keys = list(value) if isinstance(value, dict) else [0] if isinstance(value, list) else []
    for key in keys[:100] if value else ():
        yield value, key
        yield from places(value[key])


@pytest.mark.harden
@pytest.mark.parametrize("name", NAMES)
def test_config_with_junk_in_any_place_is_read_or_refused(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(name, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    outcomes = set()
    for holder, key in list(places(config)):
        whole = holder[key]
        for junk in JUNK:
            holder[key] = junk
            (folder / "config.json").write_text(json.dumps(config))
            try:
                model = read_model(open_checkpoint(folder))
                model.tensors()
                model.hyperparameters(0)
                model.leading_keys()
                outcomes.add("read")
            except MinitronError as error:
                assert "\n" not in str(error)
                outcomes.add("refused")
        holder[key] = whole
    assert outcomes == {"read", "refused"}

"""Input that no command can use: one clear line, the contract's exit code, nothing half-written."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, RECORDED, fails

HELD_OUT = str(EXAMPLES / "held-out.txt")
IMATRIX = str(RECORDED / "nano-llama.imatrix.gguf")


def test_main_names_missing_files(minitron: Any, tmp_path: Path) -> None:
    none = tmp_path / "none.gguf"
    for arguments in (
        ("convert", tmp_path / "none"),
        ("imatrix", none, "-f", HELD_OUT),
        ("quantize", none, "Q4_0"),
        ("ppl", none, "-f", HELD_OUT),
        ("generate", none, "x"),
        ("inspect", none),
        ("run", tmp_path / "none.toml"),
    ):
        fails(minitron(*arguments), 3, "none")


def test_convert_refuses_other_folders(minitron: Any, tmp_path: Path) -> None:
    fails(minitron("convert", tmp_path), 3, "config.json")


def test_convert_names_an_unsupported_architecture(minitron: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    ran = minitron("convert", tmp_path, "-o", tmp_path / "x.gguf")
    fails(ran, 4, "GPT2LMHeadModel", "LlamaForCausalLM")


def test_convert_refuses_truncated_safetensors(minitron: Any, tmp_path: Path) -> None:
    source = EXAMPLES / "nano-llama"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    out = tmp_path / "out"
    out.mkdir()
    fails(minitron("convert", tmp_path, "-o", out / "x.gguf"), 8, "model.safetensors")
    assert list(out.iterdir()) == []


def test_commands_refuse_damaged_gguf(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    for name, data in (
        ("cut.gguf", nano_llama.read_bytes()[:100_000]),
        ("text.gguf", b"not a model at all"),
        ("empty.gguf", b""),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        for arguments in (
            ("quantize", path, "Q4_0"),
            ("ppl", path, "-f", HELD_OUT),
            ("generate", path, "x"),
            ("inspect", path),
            ("imatrix", path, "-f", HELD_OUT),
        ):
            fails(minitron(*arguments), 8, name)
    assert len(list(tmp_path.iterdir())) == 3


def test_commands_refuse_an_importance_matrix_as_model(minitron: Any, tmp_path: Path) -> None:
    for arguments in (
        ("quantize", IMATRIX, "Q4_0", "-d", tmp_path),
        ("generate", IMATRIX, "x"),
        ("imatrix", IMATRIX, "-f", HELD_OUT, "-o", tmp_path / "m.gguf"),
    ):
        fails(minitron(*arguments), 4, "importance matrix, not a model")
    fails(minitron("ppl", IMATRIX, "-f", HELD_OUT), 4, "importance matrix, not a model")


def test_local_models_leaves_out_importance_matrices(minitron: Any, nano_llama: Path) -> None:
    ran = minitron("ppl", IMATRIX, nano_llama, "-f", HELD_OUT, "--chunks", 2, "-c", 128)
    assert ran.code == 0 and "left out" in ran.err and ran.out.startswith("PPL = ")


def test_ppl_refuses_a_short_text(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Just this.")
    fails(minitron("ppl", nano_llama, "-f", short), 2, "short.txt", "two chunks")
    out = tmp_path / "m.gguf"
    fails(minitron("imatrix", nano_llama, "-f", short, "-o", out), 2, "two chunks")
    assert not out.exists()


def test_quantize_names_the_nearest_level(minitron: Any, nano_llama: Path) -> None:
    fails(minitron("quantize", nano_llama, "Q4_K_X"), 4, "Q4_K_X", "Q4_K")


def test_quantize_says_where_a_matrix_is_needed(
    minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    ran = minitron("quantize", nano_llama, "IQ2_XS", "-d", tmp_path / "x")
    fails(ran, 5, "IQ2_XS", "-f TEXT", "--imatrix")
    assert not (tmp_path / "x").exists()


def test_commands_refuse_unwritable_outputs(minitron: Any, nano_llama: Path) -> None:
    for arguments in (
        ("quantize", nano_llama, "Q4_0", "-d", "/proc/nowhere"),
        ("imatrix", nano_llama, "-f", HELD_OUT, "-o", "/proc/nowhere/m.gguf"),
        ("convert", EXAMPLES / "nano-llama", "-o", "/proc/nowhere/x.gguf"),
    ):
        ran = minitron(*arguments)
        assert ran.code in (3, 7), ran.err
        fails(ran, ran.code, "/proc/nowhere")


def test_commands_refuse_a_folder_for_a_file(
    minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model is looked for: here there is none."""
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    text = ("-f", HELD_OUT)
    for words in (
        ("quantize", "none.gguf", "Q4_0", "-o", taken),
        ("quantize", "none.gguf", "Q4_0", "-o", taken, "--force"),
        ("quantize", "none.gguf", "Q4_0", "--errors", taken),
        ("quantize", "none.gguf", "--bpw", "4", "-o", taken),
        ("imatrix", "none.gguf", *text, "-o", taken),
        ("imatrix", "none.gguf", *text, "-o", taken, "--force"),
        ("imatrix", "none/none", *text, "-o", taken, "--resume"),
        ("imatrix-merge", IMATRIX, IMATRIX, "-o", taken, "--force"),
        ("sensitivity", "none.gguf", *text, "-o", taken, "--force"),
        ("ppl", "none.gguf", *text, "--resume", taken),
        ("tasks", "none.gguf", "--task", "arc", "--data", HELD_OUT, "--answers", taken, "--force"),
        ("generate", "none.gguf", "x", "--prompt-cache", taken),
    ):
        fails(minitron(*words), 2, "taken is a folder")
    assert list(taken.iterdir()) == []


def test_quantize_refuses_to_replace(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    mine = tmp_path / "nano-llama-Q4_0.gguf"
    mine.write_text("mine")
    fails(minitron("quantize", nano_llama, "Q4_0", "-d", tmp_path), 1, "--force")
    assert mine.read_text() == "mine"


def test_commands_refuse_wrong_usage(minitron: Any, nano_llama: Path) -> None:
    for arguments in (
        ("quantize",),
        ("ppl", nano_llama),
        ("convert", "x", "--outtype"),
        ("generate", nano_llama, "x", "--gpu-layers", "many"),
        ("nonsense",),
    ):
        ran = minitron(*arguments)
        assert ran.code == 2 and ran.out == "" and "Traceback" not in ran.err


def test_main_ends_when_a_pipe_is_closed(nano_llama: Path) -> None:
    command = f"{sys.executable} -m minitron_cli inspect {nano_llama} --tensors | head -1"
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert ran.stderr == "" and ran.stdout.startswith("file")

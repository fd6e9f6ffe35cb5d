"""The command line as a contract: names, exit codes, JSON keys, what goes where."""

import hashlib
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from mixture import write_mixture

from minitron_cli.tables import notes_of
from minitron_quant.measure.divergence import Divergence
from minitron_quant.measure.table import Row
from minitron_quant.quantize.batch import LevelResult
from support import EXAMPLES, RECORDED, fails

HELD_OUT = str(EXAMPLES / "held-out.txt")
IMATRIX = str(RECORDED / "nano-llama.imatrix.gguf")


def test_version_names_what_decides_results(minitron: Any) -> None:
    ran = minitron("--version")
    assert ran.code == 0
    for name in ("minitron 0.", "llama-cpp-python 0.3.36", "llama.cpp 0c1e57098"):
        assert name in ran.out


@pytest.mark.parametrize(
    "command",
    ["convert", "imatrix", "quantize", "ppl", "generate", "run", "inspect", "verify", "doctor"],
)
def test_help_has_examples(command: str, minitron: Any) -> None:
    ran = minitron(command, "--help")
    assert ran.code == 0
    assert f"minitron {command}" in ran.out and "Examples" in ran.out


def test_convert_and_inspect(minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "nano.gguf"
    ran = minitron("convert", EXAMPLES / "nano-llama", "-o", path, "--outtype", "bf16", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["paths"] == [str(path)] and ran.document["outtype"] == "bf16"
    again = minitron("convert", EXAMPLES / "nano-llama", "-o", path)
    fails(again, 1, "nano.gguf", "--force")
    described = minitron("inspect", path, "--tensors", "--json").document
    assert described["architecture"] == "llama" and described["level"] == "BF16"
    assert described["types"] == {"bf16": 44, "f32": 14}
    assert len(described["tensors"]) == 58
    assert described["metadata"]["tokenizer.ggml.tokens"]["length"] == 4096
    assert "llama.attention.key_length" in minitron("inspect", path).out


def test_imatrix(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    arguments = ("imatrix", nano_llama, "-f", HELD_OUT, "--chunks", 2, "-c", 128, "-o", path)
    ran = minitron(*arguments, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["entries"] == 42 and ran.document["chunks"] == 2
    fails(minitron(*arguments), 1, "exists", "--force")
    assert minitron(*arguments, "--force", "-q").code == 0


def test_imatrix_merge_and_stats(minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "both.gguf"
    ran = minitron("imatrix-merge", IMATRIX, IMATRIX, "-o", path, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["entries"] == 42 and ran.document["chunks"] == 173
    fails(minitron("imatrix-merge", IMATRIX, IMATRIX, "-o", path), 1, "--force")
    fails(minitron("imatrix-merge", IMATRIX, "-o", tmp_path / "x.gguf"), 2, "two files")
    document = minitron("imatrix-stats", path, "--json").document
    assert len(document["weights"]) == 42 and len(document["layers"]) == 6
    table = minitron("imatrix-stats", path).out.splitlines()
    assert table[0].startswith("Weight") and len(table) == 1 + 42 + 1 + 1 + 6


def test_quantize(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    ran = minitron("quantize", nano_llama, "q4_0", "Q8_0", "-d", tmp_path, "--json")
    assert ran.code == 0, ran.err
    levels = ran.document["levels"]
    assert [entry["level"] for entry in levels] == ["Q4_0", "Q8_0"]
    for entry in levels:
        assert Path(entry["path"]).stat().st_size == entry["bytes"]
        keys = {"level", "path", "bytes", "bpw", "seconds", "sha256", "types", "kept"}
        assert set(entry) == keys and sum(entry["types"].values()) == 58
        assert entry["sha256"] == hashlib.sha256(Path(entry["path"]).read_bytes()).hexdigest()
    again = minitron("quantize", nano_llama, "q4_0", "Q8_0", "-d", tmp_path)
    assert again.code == 0 and "2 of 2 files were there already" in again.err
    single = tmp_path / "one.gguf"
    assert minitron("quantize", nano_llama, "Q5_0", "-o", single).code == 0
    assert single.is_file()


def test_quantize_dry_run_writes_nothing(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    ran = minitron(
        "quantize", nano_llama, "all", "--imatrix", IMATRIX, "-d", tmp_path / "x", "--dry-run"
    )
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 1 + 27 + 1 and "% saved" in ran.out
    assert not (tmp_path / "x").exists()


def test_ppl_of_one_and_of_many(
    minitron: Any, nano_llama: Path, llama_levels: dict[str, LevelResult]
) -> None:
    options = ("-f", HELD_OUT, "--chunks", 2, "-c", 128)
    one = minitron("ppl", nano_llama, *options)
    assert one.code == 0 and one.out.startswith("PPL = ") and "±" in one.out
    paths = (llama_levels["Q8_0"].path, nano_llama)
    document = minitron("ppl", *paths, *options, "--json").document
    assert document["ctx"] == 128 and document["chunks"] == 2
    assert [row["level"] for row in document["rows"]] == ["Q8_0", "F16"]
    keys = {
        "model",
        "level",
        "size_mib",
        "size_pct",
        "ppl",
        "ppl_error",
        "accuracy_pct",
        "kld_mean",
        "kld_error",
        "kld_p99",
        "kld_max",
        "same_top_pct",
        "same_top_error",
        "rms_delta_p_pct",
    }
    assert all(set(row) >= keys and row["kld_mean"] is None for row in document["rows"])
    table = minitron("ppl", *paths, *options)
    assert len(table.out.splitlines()) == 3
    markdown = minitron("ppl", *paths, *options, "--format", "md").out.splitlines()
    assert markdown[1].startswith("| :--") and len(markdown) == 4
    comma = minitron("ppl", *paths, *options, "--format", "csv").out.splitlines()
    assert comma[0].startswith("Model,") and len(comma) == 3


def test_a_noise_floor_is_a_number_only_where_there_is_noise() -> None:
    none = Divergence(**{each.name: 4e-16 for each in fields(Divergence)})
    row = Row("a", "F16", 1.0, 100.0, 9.0, 0.1, 100.0, 4, "CPU", noise=none)
    assert "none" in notes_of([row])[0]
    louder = replace(none, kld_mean=2e-6, kld_max=3e-5)
    assert "2.0e-06" in notes_of([replace(row, noise=louder)])[0]


def test_ppl_goes_on_and_marks_what_is_beaten(
    minitron: Any, nano_llama: Path, llama_levels: dict[str, LevelResult], tmp_path: Path
) -> None:
    paths = [llama_levels[level].path for level in ("IQ4_NL", "IQ1_S")]
    # a file that is larger, and not better for it
    larger = tmp_path / "larger.gguf"
    larger.write_bytes(paths[1].read_bytes() + bytes(1 << 23))
    options = ("-f", HELD_OUT, "--chunks", 4, "-c", 128, "--resume", tmp_path / "state")
    ran = minitron("ppl", paths[0], larger, "--reference", nano_llama, *options)
    lines = ran.out.splitlines()
    assert "larger.gguf †" in lines[3] and "†" not in lines[1] + lines[2]
    assert lines[5].startswith("†") and lines[6].startswith("Noise floor: ")
    again = minitron("ppl", paths[0], larger, "--reference", nano_llama, *options, "--json")
    assert [row["dominated_by"] for row in again.document["rows"]] == [None, None, paths[0].name]
    assert 0 <= again.document["noise_floor"]["kld_max"] < 1e-4
    comma = minitron("ppl", *paths, "--reference", nano_llama, *options, "--format", "csv").out
    assert comma.splitlines()[0].endswith(",Dominated by") and "†" not in comma
    strided = minitron("ppl", paths[0], *options, "--stride", 32)
    assert strided.out.startswith("PPL = ")
    fails(minitron("ppl", paths[0], *options, "--stride", 128), 2, "from 1 to 127")


def test_ppl_compares_any_two(
    minitron: Any, nano_llama: Path, llama_levels: dict[str, LevelResult]
) -> None:
    paths = [llama_levels[level].path for level in ("Q8_0", "Q4_0", "IQ1_S")]
    options = ("-f", HELD_OUT, "--chunks", 3, "-c", 128, "--compare")
    found = minitron("ppl", *paths, *options, "--json").document["differences"]
    assert [each["b"] for each in found] == [paths[1].name, paths[2].name, paths[2].name]
    assert all(
        each["ppl_ratio_low"] <= each["ppl_ratio"] <= each["ppl_ratio_high"] for each in found
    )
    assert all(each["kld_difference"] is None for each in found)
    shown = minitron("ppl", *paths[1:], "--reference", nano_llama, *options)
    assert "PPL ratio" in shown.out and "KLD difference" in shown.out
    assert len(shown.out.splitlines()) == 4 + 2 + 1 + 4


def test_generate(minitron: Any, nano_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = minitron("generate", nano_llama, "The old house", "-n", 12, "--temp", 0, "--json")
    assert ran.code == 0, ran.err
    document = ran.document
    assert set(document) == {
        "model",
        "prompt",
        "text",
        "tokens",
        "finish_reason",
        "seed",
        "prompt_tokens",
        "prompt_tokens_per_second",
        "prompt_tokens_reused",
        "tokens_per_second",
        "time_to_first_token_s",
        "device",
    }
    assert len(document["tokens"]) == 12 and document["finish_reason"] == "length"
    plain = minitron("generate", nano_llama, "The old house", "-n", 12, "--temp", 0)
    assert plain.out == document["text"] + "\n" and plain.err == ""
    late = minitron(
        "generate", nano_llama, "The old house", "-n", 12, "--temp", 0, "--no-stream", "--echo"
    )
    assert late.out == "The old house" + document["text"] + "\n"


def test_generate_reads_a_pipe_and_obeys_a_schema(nano_llama: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"a": {"type": "boolean"}}, '
        '"required": ["a"], "additionalProperties": false}'
    )
    command = [sys.executable, "-m", "minitron_cli", "generate", nano_llama]
    command += ["--json-schema", schema, "--seed", "1", "--json"]
    ran = subprocess.run(command, input="Say it:\n", capture_output=True, text=True, check=True)
    document = json.loads(ran.stdout)
    assert document["prompt"] == "Say it:" and document["seed"] == 1
    assert isinstance(json.loads(document["text"])["a"], bool)


def test_doctor(minitron: Any) -> None:
    ran = minitron("doctor", "--json")
    assert ran.code == 0
    assert ran.document["problems"] == [] and ran.document["threads"] >= 1
    assert any(device["kind"] == "cpu" for device in ran.document["devices"])
    assert "all is well" in minitron("doctor").out


def test_doctor_never_shows_a_token(minitron: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_marked_secret")
    for arguments in (("doctor",), ("doctor", "--json")):
        ran = minitron(*arguments)
        assert "marked_secret" not in ran.out + ran.err


class TestBadInput:
    """One clear line each, the contract's exit code, nothing half-written."""

    def test_missing_files(self, minitron: Any, tmp_path: Path) -> None:
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

    def test_not_a_checkpoint(self, minitron: Any, tmp_path: Path) -> None:
        fails(minitron("convert", tmp_path), 3, "config.json")

    def test_unsupported_architecture(self, minitron: Any, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
        ran = minitron("convert", tmp_path, "-o", tmp_path / "x.gguf")
        fails(ran, 4, "GPT2LMHeadModel", "LlamaForCausalLM")

    def test_truncated_safetensors(self, minitron: Any, tmp_path: Path) -> None:
        source = EXAMPLES / "nano-llama"
        for file in source.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        out = tmp_path / "out"
        out.mkdir()
        fails(minitron("convert", tmp_path, "-o", out / "x.gguf"), 8, "model.safetensors")
        assert list(out.iterdir()) == []

    def test_damaged_gguf(self, minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
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

    def test_an_importance_matrix_is_no_model(self, minitron: Any, tmp_path: Path) -> None:
        for arguments in (
            ("quantize", IMATRIX, "Q4_0", "-d", tmp_path),
            ("generate", IMATRIX, "x"),
            ("imatrix", IMATRIX, "-f", HELD_OUT, "-o", tmp_path / "m.gguf"),
        ):
            fails(minitron(*arguments), 4, "importance matrix, not a model")
        fails(minitron("ppl", IMATRIX, "-f", HELD_OUT), 4, "importance matrix, not a model")

    def test_an_importance_matrix_among_models_is_left_out(
        self, minitron: Any, nano_llama: Path
    ) -> None:
        ran = minitron("ppl", IMATRIX, nano_llama, "-f", HELD_OUT, "--chunks", 2, "-c", 128)
        assert ran.code == 0 and "left out" in ran.err and ran.out.startswith("PPL = ")

    def test_text_too_short(self, minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
        short = tmp_path / "short.txt"
        short.write_text("Just this.")
        fails(minitron("ppl", nano_llama, "-f", short), 2, "short.txt", "two chunks")
        out = tmp_path / "m.gguf"
        fails(minitron("imatrix", nano_llama, "-f", short, "-o", out), 2, "two chunks")
        assert not out.exists()

    def test_unknown_level_names_the_nearest(self, minitron: Any, nano_llama: Path) -> None:
        fails(minitron("quantize", nano_llama, "Q4_K_X"), 4, "Q4_K_X", "Q4_K")

    def test_imatrix_needed(self, minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
        ran = minitron("quantize", nano_llama, "IQ2_XS", "-d", tmp_path / "x")
        fails(ran, 5, "IQ2_XS", "minitron imatrix", "--imatrix")
        assert not (tmp_path / "x").exists()

    def test_output_that_cannot_be_written(self, minitron: Any, nano_llama: Path) -> None:
        for arguments in (
            ("quantize", nano_llama, "Q4_0", "-d", "/proc/nowhere"),
            ("imatrix", nano_llama, "-f", HELD_OUT, "-o", "/proc/nowhere/m.gguf"),
            ("convert", EXAMPLES / "nano-llama", "-o", "/proc/nowhere/x.gguf"),
        ):
            ran = minitron(*arguments)
            assert ran.code in (3, 7), ran.err
            fails(ran, ran.code, "/proc/nowhere")

    def test_collision(self, minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
        mine = tmp_path / "nano-llama-Q4_0.gguf"
        mine.write_text("mine")
        fails(minitron("quantize", nano_llama, "Q4_0", "-d", tmp_path), 1, "--force")
        assert mine.read_text() == "mine"

    def test_wrong_usage(self, minitron: Any, nano_llama: Path) -> None:
        for arguments in (
            ("quantize",),
            ("ppl", nano_llama),
            ("convert", "x", "--outtype"),
            ("generate", nano_llama, "x", "--gpu-layers", "many"),
            ("nonsense",),
        ):
            ran = minitron(*arguments)
            assert ran.code == 2 and ran.out == "" and "Traceback" not in ran.err

    def test_a_reader_that_leaves(self, nano_llama: Path) -> None:
        command = f"{sys.executable} -m minitron_cli inspect {nano_llama} --tensors | head -1"
        ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
        assert ran.stderr == "" and ran.stdout.startswith("file")


def test_internal_mistakes_are_one_line_too(
    minitron: Any, nano_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minitron_cli.inspection import inspecting

    def fail(*_: object) -> None:
        raise RuntimeError("impossible")

    monkeypatch.setattr(inspecting, "describe", fail)
    fails(minitron("inspect", nano_llama), 1, "impossible", "MINITRON_DEBUG=1")
    monkeypatch.setenv("MINITRON_DEBUG", "1")
    with pytest.raises(RuntimeError, match="impossible"):
        minitron("inspect", nano_llama)


def test_imatrix_says_what_it_lacks(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    mixture = write_mixture(nano_llama, tmp_path / "mixture.gguf")
    path = tmp_path / "m.gguf"
    chunks = ("--chunks", 4, "-c", 64, "-b", 128)
    ran = minitron("imatrix", mixture, "-f", HELD_OUT, *chunks, "-o", path, "--ppl", "--json")
    assert ran.code == 0, ran.err
    assert ran.document["unreached_experts"]["blk.0.ffn_up_exps.weight"] == [2, 3]
    assert ran.document["ppl"] > 1 and ran.document["ppl_error"] > 0
    words = "blk.0: no token reached experts 2, 3 of ffn_down_exps, ffn_gate_exps, ffn_up_exps"
    assert words in ran.err
    assert words in minitron("imatrix-stats", path).err


def test_imatrix_on_what_the_model_writes(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "m.gguf", tmp_path / "m.gguf.txt"
    arguments = ("imatrix", nano_llama, "-c", 32, "-b", 64, "--self", 200)
    assert minitron(*arguments, "-o", path, "-q").code == 0
    made = path.read_bytes()
    assert text.stat().st_size > 200
    path.unlink()
    fails(minitron(*arguments, "-o", path), 1, "m.gguf.txt exists", "-f m.gguf.txt")
    assert minitron(*arguments, "-o", path, "--resume", "-q").code == 0
    assert path.read_bytes() == made
    fails(minitron("imatrix", nano_llama, "-o", tmp_path / "n.gguf"), 2, "no text", "--self")

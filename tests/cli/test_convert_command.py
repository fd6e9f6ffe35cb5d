"""minitron convert to types and levels, and minitron verify."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES
from minitron.conversion import convert
from minitron.verification import verify
from minitron_convert.convert import ConvertSettings
from minitron_convert.hf_reference import source_logits
from minitron_core.errors import Damaged, ImatrixNeeded, OutOfResources, Unsupported
from minitron_core.gguf import TYPE, open_gguf, open_shards
from minitron_core.progress import Event
from minitron_quant.levels import level_named
from minitron_quant.quantize.prepare import QuantizeSettings, prepare
from minitron_quant.quantize.run import run

LLAMA, NEMOTRON = EXAMPLES / "nano-llama", EXAMPLES / "nano-nemotron"


def in_two_steps(source: Path, level: str, folder: Path) -> Path:
    """The file that convert and quantize make one after the other."""
    full = convert(ConvertSettings(source, folder)).paths[0]
    output = folder / "quantized.gguf"
    list(run(prepare(QuantizeSettings(full, (level_named(level),), output=output))))
    return output


@pytest.mark.parametrize(
    ("source", "level"),
    [(LLAMA, "q4_k_m"), (LLAMA, "iq4_xs"), (NEMOTRON, "q6_k"), (NEMOTRON, "Q4_0")],
)
def test_convert_to_a_level_equals_two_steps(
    source: Path, level: str, tmp_path: Path, minitron: Any
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    ran = minitron("convert", source, "--outtype", level, "-o", out, "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    (path,) = out.glob("*.gguf")
    assert document["paths"] == [str(path)] and document["bytes"] == path.stat().st_size
    assert document["outtype"] == level.lower()
    assert path.name.endswith(f"-{level.upper()}.gguf")
    assert path.read_bytes() == in_two_steps(source, level, tmp_path).read_bytes()


def test_convert_in_small_pieces_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pieces of 17 rows begin and end within heads, whose rows are read in one go
    monkeypatch.setattr("minitron_quant.quantize.encode.SLAB_ELEMENTS", 256 * 17)
    result = convert(ConvertSettings(LLAMA, tmp_path, outtype="q4_k_m"))
    expected = in_two_steps(LLAMA, "q4_k_m", tmp_path)
    assert result.paths[0].read_bytes() == expected.read_bytes()


def test_convert_writes_a_level_in_shards(tmp_path: Path) -> None:
    events: list[Event] = []
    settings = ConvertSettings(
        NEMOTRON, tmp_path / "m.gguf", outtype="q5_k_s", split_max_size=1_000_000
    )
    result = convert(settings, events.append)
    assert len(result.paths) > 2 and sum(p.stat().st_size for p in result.paths) == result.bytes
    whole = open_gguf(in_two_steps(NEMOTRON, "q5_k_s", tmp_path))
    shards = open_shards(result.paths[0])
    assert shards[0].get("general.file_type") == whole.get("general.file_type")
    for shard in shards:
        for info in shard.tensors:
            assert (shard.data(info) == whole.data(whole.tensor(info.name))).all()
    assert events[-1].done == events[-1].total == sum(info.nbytes for info in whole.tensors)


def test_convert_refuses_a_level_that_needs_a_matrix(minitron: Any, tmp_path: Path) -> None:
    ran = minitron("convert", LLAMA, "--outtype", "iq2_xs", "-o", tmp_path)
    assert ran.code == 5 and ran.out == ""
    assert f"minitron quantize {LLAMA} IQ2_XS -f TEXT" in ran.err
    assert not list(tmp_path.iterdir())


def test_convert_refuses_wrong_outtypes(minitron: Any, tmp_path: Path) -> None:
    unknown = minitron("convert", LLAMA, "--outtype", "q4_k_x", "-o", tmp_path)
    assert unknown.code == 4 and "Q4_K" in unknown.err
    vocabulary = minitron("convert", LLAMA, "--outtype", "q4_k_m", "--vocab-only")
    assert vocabulary.code == 2 and "--vocab-only" in vocabulary.err
    revision = minitron("convert", LLAMA, "--revision", "main")
    assert revision.code == 2 and "--revision" in revision.err


def copied(source: Path, folder: Path) -> Path:
    """A copy of a checkpoint, to be changed."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_convert_leaves_nothing_after_damage(
    minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = copied(LLAMA, tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    weights = source / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1000, 2)
        file.write(b"\xff\x7f" * 100)
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    settings = ConvertSettings(source, out)
    with pytest.raises(Damaged, match="not finite"):
        convert(replace(settings, outtype="q4_k_m"))
    with pytest.raises(ImatrixNeeded):
        convert(replace(settings, outtype="iq1_s"))
    assert not list(out.iterdir()) and not list(place.iterdir())


def test_convert_checks_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OutOfResources, match="1000 bytes free"):
        convert(ConvertSettings(LLAMA, tmp_path, outtype="q4_0"))


@pytest.mark.parametrize("outtype", ["bf16", "q4_k_m"])
def test_convert_dry_run_shows_the_plan(outtype: str, minitron: Any, tmp_path: Path) -> None:
    arguments = ("convert", LLAMA, "--outtype", outtype, "-o", tmp_path / "m.gguf")
    text = minitron(*arguments, "--dry-run").out
    document = json.loads(minitron(*arguments, "--dry-run", "--json").out)
    assert not list(tmp_path.iterdir())
    assert minitron(*arguments).code == 0
    model = open_gguf(tmp_path / "m.gguf")
    assert document["bytes"] == model.size and document["dry_run"]
    assert 64 << 20 < document["memory_bytes"] < 1 << 30
    written = [(i.name, list(i.shape), TYPE[i.type].name, i.nbytes) for i in model.tensors]
    assert [tuple(row.values()) for row in document["plan"]] == written
    lines = text.splitlines()
    assert len(lines) == 1 + 58 + 1
    assert lines[1].split()[0] == written[0][0]
    assert "would write" in lines[-1] and "of memory" in lines[-1]


def test_convert_names_the_architecture_before_missing_files(minitron: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    ran = minitron("convert", tmp_path)
    assert ran.code == Unsupported.exit_code
    assert "GPT2LMHeadModel" in ran.err and "NemotronForCausalLM" in ran.err


@pytest.mark.parametrize("outtype", ["auto", "q4_k_m"])
@pytest.mark.parametrize("source", [LLAMA, NEMOTRON], ids=["nano-llama", "nano-nemotron"])
def test_verify_passes_what_convert_wrote(
    source: Path, outtype: str, minitron: Any, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    minitron("convert", source, "--outtype", outtype, "-o", path)
    ran = minitron("verify", source, path, "--no-logits", "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["passed"] and document["skipped"] == []
    names = [check["name"] for check in document["checks"]]
    assert names == ["keys", "tensors", "values", "token ids"]
    text = minitron("verify", source, path, "--no-logits").out
    assert [line.split()[0] for line in text.splitlines()] == ["passed"] * 4


def test_verify_finds_another_model(minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    minitron("convert", NEMOTRON, "-o", path)
    ran = minitron("verify", LLAMA, path)
    assert ran.code == 1
    assert ran.out.startswith("FAILED") and "rope_freqs.weight is missing" in ran.out
    assert "not compared" in ran.err and "Traceback" not in ran.err


def test_verify_finds_another_tokenizer(minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    minitron("convert", LLAMA, "-o", path)
    source = copied(LLAMA, tmp_path / "source")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    ran = minitron("verify", source, path, "--no-logits")
    assert ran.code == 1 and "FAILED   token ids" in ran.out


def test_verify_refuses_bad_input(minitron: Any, tmp_path: Path) -> None:
    missing = minitron("verify", LLAMA, tmp_path / "absent.gguf")
    assert missing.code == 3 and "absent.gguf" in missing.err
    (tmp_path / "text.gguf").write_text("not a model")
    damaged = minitron("verify", LLAMA, tmp_path / "text.gguf")
    assert damaged.code == 8 and "text.gguf" in damaged.err


@pytest.mark.parametrize("source", [LLAMA, NEMOTRON], ids=["nano-llama", "nano-nemotron"])
def test_verify_compares_logits_with_transformers(
    source: Path, tmp_path: Path, record_testsuite_property: Any
) -> None:
    if source_logits(source) is None:
        pytest.skip("transformers and torch are not installed")
    settings = ConvertSettings(source, tmp_path, "f32")
    found = verify(settings, convert(settings).paths[0])
    check = found.checks[-1]
    record_testsuite_property(f"logits of {source.name}", check.detail)
    assert check.name == "logits" and check.passed, check.detail

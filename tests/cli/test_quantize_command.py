"""minitron quantize as a user meets it: plans, progress, and what it refuses."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, RECORDED
from helpers.tiny_gguf import write_tiny
from minitron_cli.output import Output
from minitron_convert.convert import ConvertSettings, convert

IMATRIX = str(RECORDED / "nano-llama.imatrix.gguf")


@pytest.mark.parametrize("model", ["nano-llama", "nano-nemotron"])
def test_quantize_dry_run_plans_a_checkpoint_as_its_conversion(
    model: str, minitron: Any, tmp_path: Path
) -> None:
    imatrix = RECORDED / f"{model}.imatrix.gguf"
    words = ("all", "--imatrix", imatrix, "-d", tmp_path / "out", "--dry-run", "--json")
    before = minitron("quantize", EXAMPLES / model, *words)
    assert before.code == 0, before.err
    converted = convert(ConvertSettings(EXAMPLES / model, tmp_path)).paths[0]
    after = minitron("quantize", converted, *words)
    documents = [ran.document for ran in (before, after)]
    for document in documents:
        assert document.pop("estimated_seconds") > 0 and document.pop("free_bytes") > 0
    assert documents[0] == documents[1] and len(documents[0]["levels"]) == 27
    assert [path.name for path in tmp_path.iterdir()] == [converted.name]


def test_quantize_reports_each_level_to_who_watches(
    minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny(tmp_path / "tiny-F16.gguf")
    words = ("quantize", source, "Q4_0", "Q8_0", "--force")
    assert minitron(*words).err == ""
    monkeypatch.setenv("MINITRON_PROGRESS", "auto")
    watched = minitron(*words, "-v").err.splitlines()
    lines = [line for line in watched if "bits per weight" in line]
    assert [line.split(":")[0] for line in lines] == ["Q4_0", "Q8_0"]
    assert re.search(r"MiB.* bits per weight, \d+ s$", lines[0])
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as far as rich can tell
    monkeypatch.setattr(Output, "interactive", property(lambda _: True))
    watched = minitron(*words, "--json", "-v")
    assert watched.err.count("bits per weight") == 2 and "quantize" in watched.err
    assert len(watched.document["levels"]) == 2
    assert minitron(*words, "-q").err == ""


def test_quantize_writes_levels_and_finds_them_again(
    minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    ran = minitron("quantize", nano_llama, "q4_0", "Q8_0", "-d", tmp_path, "--json")
    assert ran.code == 0, ran.err
    levels = ran.document["levels"]
    assert [entry["level"] for entry in levels] == ["Q4_0", "Q8_0"]
    for entry in levels:
        assert Path(entry["path"]).stat().st_size == entry["bytes"]
        keys = {"level", "path", "bytes", "bpw", "seconds", "sha256", "types", "fallbacks", "kept"}
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

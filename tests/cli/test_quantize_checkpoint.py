"""minitron quantize of a checkpoint: the files of converting, calibrating, quantizing by hand."""

from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, beginning, fails
from minitron import checkpoint_levels

CHECKPOINT = EXAMPLES / "nano-llama"
NAME = "Nano-Llama-8.0M"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_quantize_makes_levels_straight_from_a_checkpoint(minitron: Any, tmp_path: Path) -> None:
    ran = minitron("quantize", CHECKPOINT, "Q4_K_M", "Q8_0", "-d", tmp_path)
    assert ran.code == 0, ran.err
    files = {f"{NAME}-{level}.gguf" for level in ("Q4_K_M", "Q8_0")}
    assert names(tmp_path) == files | {f"{NAME}.manifest.json"}
    (tmp_path / "by-hand").mkdir()
    full = tmp_path / "by-hand" / f"{NAME}-BF16.gguf"
    assert minitron("convert", CHECKPOINT, "-o", full).code == 0
    assert minitron("quantize", full, "Q4_K_M", "Q8_0").code == 0
    for file in files:
        assert (tmp_path / file).read_bytes() == full.with_name(file).read_bytes()
    again = minitron("quantize", CHECKPOINT, "Q4_K_M", "Q8_0", "-d", tmp_path)
    assert "2 of 2 files were there already" in again.err


def test_quantize_calibrates_a_checkpoint_on_a_text(minitron: Any, tmp_path: Path) -> None:
    text, direct, by_hand = beginning(tmp_path), tmp_path / "direct", tmp_path / "by-hand"
    by_hand.mkdir()
    given = ("-f", text, "--calibration-chunks", "1")
    direct.mkdir()
    # what a run leaves that was killed while it calibrated
    (direct / f".{NAME}.calibration.gguf").write_bytes(b"half")
    (direct / f".{NAME}.calibration.lock").write_bytes(b"")
    ran = minitron("quantize", CHECKPOINT, "IQ2_M", "Q4_0", *given, "-d", direct)
    assert ran.code == 0, ran.err
    made = {f"{NAME}-IQ2_M.gguf", f"{NAME}-Q4_0.gguf", f"{NAME}.imatrix.gguf"}
    hidden = {name for name in names(direct) if name.startswith(".")}
    assert names(direct) - hidden == made | {f"{NAME}.manifest.json"}
    assert hidden == {f".{NAME}.imatrix.gguf.made-from"}
    full = by_hand / f"{NAME}-BF16.gguf"
    assert minitron("convert", CHECKPOINT, "-o", full).code == 0
    assert minitron("quantize", full, "IQ2_M", "Q4_0", *given).code == 0
    for file in made:
        assert (direct / file).read_bytes() == (by_hand / file).read_bytes(), file
    matrix = (direct / f"{NAME}.imatrix.gguf").stat()
    again = minitron("quantize", CHECKPOINT, "IQ2_M", "Q4_0", *given, "-d", direct)
    assert "2 of 2 files were there already" in again.err
    assert (direct / f"{NAME}.imatrix.gguf").stat() == matrix
    other = minitron("quantize", CHECKPOINT, "IQ2_M", "-f", text, "-d", direct)
    fails(other, 1, "was made from something else", "--imatrix")


def test_quantize_keeps_the_full_file_where_it_is_wanted(minitron: Any, tmp_path: Path) -> None:
    given = ("quantize", CHECKPOINT, "Q4_0", "--keep-f16", "-d", tmp_path)
    assert minitron(*given).code == 0
    full = tmp_path / f"{NAME}-BF16.gguf"
    written = full.stat()
    assert minitron(*given).code == 0 and full.stat() == written
    full.write_bytes(b"other")
    fails(minitron(*given), 1, f"{NAME}-BF16.gguf already exists", "--force")


def test_quantize_gptq_takes_a_checkpoint(minitron: Any, tmp_path: Path) -> None:
    given = ("--gptq", "independent", "-f", beginning(tmp_path), "--calibration-chunks", "2")
    given = ("Q4_0", *given, "--tensor-type", r"blk\.[1-9]=f16")
    full = tmp_path / "by-hand" / f"{NAME}-BF16.gguf"
    full.parent.mkdir()
    assert minitron("convert", CHECKPOINT, "-o", full).code == 0
    by_hand = minitron("quantize", full, *given)
    assert by_hand.code == 0, by_hand.err
    folder = tmp_path / "direct"
    ran = minitron("quantize", CHECKPOINT, *given, "-d", folder)
    assert ran.code == 0, ran.err
    assert names(folder) == names(full.parent) - {full.name, f".{full.name}.made-from"}
    made = f"{NAME}-Q4_0.gguf"
    assert (folder / made).read_bytes() == full.with_name(made).read_bytes()


def test_quantize_keeps_a_checkpoints_full_file_after_ctrl_c(
    minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minitron_cli.quantize_gptq.gptq_method", stopped)
    given = ("quantize", CHECKPOINT, "Q4_0", "--gptq", "-f", "none.txt", "-d", tmp_path)
    assert minitron(*given).code == 130
    (full,) = tmp_path.glob(f".{NAME}.full/*.gguf")
    monkeypatch.undo()
    fails(minitron(*given), 3, "none.txt")
    assert not full.parent.exists()


def test_quantize_leaves_no_full_file_when_calibration_fails(minitron: Any, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("too short")
    ran = minitron("quantize", CHECKPOINT, "Q4_0", "-f", tmp_path / "short.txt", "-d", tmp_path)
    fails(ran, 2, "short.txt")
    assert names(tmp_path) == {"short.txt"}


def test_quantize_checks_the_disk_before_calibrating(
    minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_levels, "free_bytes", lambda _folder: 16_000_000)
    given = ("quantize", CHECKPOINT, "Q4_0", "-f", beginning(tmp_path), "-d", tmp_path / "out")
    fails(minitron(*given), 6, "16 MB free", "the full-precision file")
    assert not (tmp_path / "out").exists()
    assert minitron("quantize", CHECKPOINT, "Q4_0", "-d", tmp_path / "out").code == 0


def test_quantize_plans_a_checkpoint_that_is_calibrated_first(
    minitron: Any, tmp_path: Path
) -> None:
    given = ("quantize", CHECKPOINT, "IQ2_M", "-f", beginning(tmp_path), "-d", tmp_path / "out")
    planned = minitron(*given, "--calibration-chunks", "1", "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert not (tmp_path / "out").exists()
    made = minitron(*given, "--calibration-chunks", "1", "--json").document
    assert planned.document["levels"][0]["bytes"] == made["levels"][0]["bytes"]
    assert planned.document["levels"][0]["types"] == made["levels"][0]["types"]


def test_quantize_dry_run_forecasts_calibration_that_is_not_done(
    minitron: Any, short_llama: Path, tmp_path: Path, known_speed: None
) -> None:
    out = tmp_path / "out"
    given = ("quantize", short_llama, "Q4_0", "-d", out, "-f", beginning(tmp_path), "--json")

    def seconds() -> float:
        return float(minitron(*given, "--dry-run").document["estimated_seconds"])

    assert seconds() > 1
    assert minitron(*given).code == 0
    assert seconds() < 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("x.gguf", "out.gguf", "Q4_K_M", "8"), "minitron quantize x.gguf Q4_K_M -o out.gguf"),
        ((CHECKPOINT, "--bpw", "3", "--no-verify"), "minitron convert"),
        (("x.gguf", "Q4_0", "-f", "a.txt", "--imatrix", "m.gguf"), "drop one"),
        (("x.gguf", "Q4_0", "--keep-f16"), "--keep-f16 is for checkpoints"),
        (("x.gguf", "Q4_0", "--calibration-chunks", "2"), "-f TEXT"),
    ],
)
def test_quantize_says_what_to_write(minitron: Any, words: tuple[Any, ...], told: str) -> None:
    fails(minitron("quantize", *words), 2, told)

"""minitron sensitivity, and quantize for a size: what they say, and how they refuse."""

from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, fails
from minitron_cli.units import parse_time
from minitron_core.errors import Usage
from minitron_core.gguf import TYPE_ID
from minitron_quant.mixed_precision import costs

CALIBRATION, HELD_OUT = EXAMPLES / "calibration.txt", EXAMPLES / "held-out.txt"


@pytest.fixture
def calibrated(
    nano_nemotron: Path, minitron: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Any]:
    """A model with its sensitivity beside it, of few types and tokens."""
    kinds = frozenset(TYPE_ID[name] for name in ("q2_K", "q4_0", "q6_K"))
    monkeypatch.setattr(costs, "ENCODABLE", kinds)
    monkeypatch.setattr(costs, "_ROWS", 32)
    model = tmp_path / "nano-F16.gguf"
    model.symlink_to(nano_nemotron)
    text = tmp_path / "text.txt"
    text.write_text(CALIBRATION.read_text()[:3000])
    return model, minitron("sensitivity", model, "-f", text, "-c", 64, "--tokens", 64, "--json")


def test_quantize_size_solves_writes_and_verifies(
    calibrated: tuple[Path, Any], minitron: Any
) -> None:
    model, ran = calibrated
    assert ran.code == 0, ran.err
    assert ran.document["tokens"] == 64 and len(ran.document["tensors"]) == 26
    again = minitron("sensitivity", model, "-f", CALIBRATION)
    fails(again, 1, "exists", "--force")

    arguments = ("quantize", model, "--size", "2.4M", "-d", model.parent / "out")
    made = minitron(*arguments, "--held-out", HELD_OUT, "--chunks", 1, "--json")
    assert made.code == 0, made.err
    document = made.document
    assert document["bytes"] <= 2_400_000 and document["kept"] in ("solved", "preset")
    assert document["recipe"].keys() == ran.document["tensors"].keys()
    assert document["baseline"].keys() >= {"level", "bytes", "kld"}
    assert document["predicted_kld"] > 0 < document["measured_kld"]
    assert Path(document["path"]).stat().st_size == document["bytes"]

    shown = minitron("quantize", model, "--bpw", "4.2", "--no-verify", "-d", model.parent / "out")
    assert shown.code == 0 and "Predicted KLD" in shown.out and "wrote" in shown.out

    curve = minitron("quantize", model, "--curve", "--json").document
    levels = {point["level"] for point in curve["presets"]}
    assert {"Q4_0", "Q6_K"} <= levels and len(curve["curve"]) > 10
    assert "llama.cpp's levels" in minitron("quantize", model, "--curve").out
    assert not list(model.parent.glob("nano-*bpw.gguf"))

    fails(minitron(*arguments), 2, "--held-out")
    fails(minitron(*arguments, "--held-out", model.parent / "text.txt"), 2, "calibration text")
    for size in ("1M", "1G"):
        refused = minitron("quantize", model, "--size", size, "--no-verify")
        fails(refused, 2, "fewer" if size == "1M" else "more", "from", "to")
    fails(minitron(*arguments, "--no-verify", "--types", "q4_0,-q2_K"), 2, "not both")


def test_quantize_refuses_sizes_that_make_no_sense(
    minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    fails(minitron("quantize", nano_llama), 2, "nothing to make")
    fails(minitron("quantize", nano_llama, "Q4_0", "--bpw", 3), 2, "not both")
    fails(minitron("quantize", nano_llama, "--size", "3M", "--bpw", 3), 2, "exclude each other")
    fails(minitron("quantize", nano_llama, "--bpw", 3, "--pure"), 2, "--pure")
    fails(minitron("quantize", nano_llama, "--bpw", 3, "--dry-run"), 2, "--dry-run", "--curve")
    missing = minitron("quantize", nano_llama, "--bpw", 3, "--no-verify", "-d", tmp_path)
    fails(missing, 3, "sensitivity", "minitron sensitivity")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("2 H", 7200)]
)
def test_parse_time_reads_units(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "0", "3d", "-1m", "1:30"])
def test_parse_time_refuses_other_texts(text: str) -> None:
    with pytest.raises(Usage, match="is not a duration"):
        parse_time(text)

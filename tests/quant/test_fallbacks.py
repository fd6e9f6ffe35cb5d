"""Tensors whose rows do not fit their level's types are counted and told."""

from pathlib import Path
from typing import Any

import pytest

from helpers import tiny_gguf
from helpers.tiny_gguf import write_tiny
from minitron_core.gguf import open_shards
from minitron_quant.quantize.fallbacks import (
    Fallback,
    fallback_notes,
    fallbacks_in,
    read_fallbacks,
)


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model whose hidden size is divisible by 32 and not by 256."""
    monkeypatch.setattr(tiny_gguf, "HIDDEN", 288)
    return write_tiny(tmp_path / "narrow-F16.gguf")


def test_read_fallbacks_counts_by_type() -> None:
    line = "warning: {:<36} - ncols    288 not divisible by 256 (required for type {:>7}) -> {}"
    lines = [
        line.format("blk.0.attn_q.weight", "q4_K", "falling back to    q5_0"),
        line.format("blk.1.attn_q.weight", "q4_K", "falling back to    q5_0"),
        line.format("output.weight", "q6_K", "falling back to    q8_0"),
        line.format("odd.weight", "q4_K", "(WARNING: must use F16 due to unusual shape) -> x")
        .replace("-> (W", "(W")
        .replace("-> x", "-> falling back to     f16"),
        "[   1/  21] blk.0.attn_q.weight - [ 288, 288, 1, 1], type = f16, size = 0.1 MiB",
    ]
    found = read_fallbacks(lines)
    assert Fallback("q4_K", "q5_0", 256, 2) in found and Fallback("q6_K", "q8_0", 256, 1) in found
    assert Fallback("q4_K", "f16", 256, 1) in found and len(found) == 3


def test_quantize_tells_of_other_types(minitron: Any, narrow: Path, tmp_path: Path) -> None:
    words = ("quantize", narrow, "Q4_K_M", "Q8_0", "-d", tmp_path / "out")
    ran = minitron(*words)
    assert ran.code == 0, ran.err
    assert "q5_0 instead of q4_K" in ran.out and "Other types" in ran.out
    assert "Q4_K_M: 13 of 20 tensors have other types than the level's" in ran.err
    assert "rows that are not divisible by 256" in ran.err
    fallen, whole = minitron(*words, "--json").document["levels"]
    assert whole["fallbacks"] == []
    assert sum(each["tensors"] for each in fallen["fallbacks"]) == 13
    for each in fallen["fallbacks"]:
        assert each["block"] == 256 and fallen["types"][each["given"]] >= each["tensors"]
    planned = minitron(*words, "--dry-run", "--json").document["levels"]
    assert planned[0]["fallbacks"] == fallen["fallbacks"]


def test_card_tells_of_other_types(minitron: Any, narrow: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert minitron("quantize", narrow, "Q4_K_M", "Q8_0", "-d", folder).code == 0
    ran = minitron("card", folder)
    assert ran.code == 0, ran.err
    text = (folder / "README.md").read_text()
    assert "13 tensors of narrow-Q4_K_M.gguf have other types than Q4_K_M wants" in text
    assert "narrow-Q8_0.gguf have" not in text


def test_fallbacks_in_agrees_with_what_was_planned(
    minitron: Any, narrow: Path, tmp_path: Path
) -> None:
    levels = ("Q4_0", "IQ4_XS", "Q2_K", "Q4_K_S", "Q5_K_M", "Q6_K", "Q5_1", "IQ4_NL", "TQ2_0")
    ran = minitron("quantize", narrow, *levels, "-d", tmp_path, "--json")
    for level in ran.document["levels"]:
        told: dict[str, int] = {}
        for each in level["fallbacks"]:
            told[each["given"]] = told.get(each["given"], 0) + each["tensors"]
        assert fallbacks_in(open_shards(Path(level["path"]))) == told, level["level"]
    assert "in 9 levels up to" in ran.err


def test_quantize_has_nothing_to_tell_where_rows_fit(
    minitron: Any, short_llama: Path, tmp_path: Path
) -> None:
    ran = minitron("quantize", short_llama, "Q4_K_M", "-d", tmp_path)
    assert "Other types" not in ran.out and "divisible" not in ran.err


def test_fallback_notes_tell_few_levels_one_by_one() -> None:
    some = (Fallback("q4_K", "q5_0", 256, 4), Fallback("q6_K", "q8_0", 256, 1))
    assert fallback_notes({"Q4_K_M": some, "Q8_0": ()}, 9) == (
        "Q4_K_M: 5 of 9 tensors have other types than the level's (4 q5_0 instead of q4_K, "
        "1 q8_0 instead of q6_K): rows that are not divisible by 256",
    )
    assert len(fallback_notes(dict.fromkeys("ABCD", some), 9)) == 1

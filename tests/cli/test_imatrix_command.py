"""minitron imatrix, imatrix-merge and imatrix-stats as a user meets them."""

from pathlib import Path
from typing import Any

from helpers.mixture import write_mixture
from helpers.support import EXAMPLES, RECORDED, fails

HELD_OUT = str(EXAMPLES / "held-out.txt")
IMATRIX = str(RECORDED / "nano-llama.imatrix.gguf")


def test_imatrix_collects_and_refuses_to_replace(
    minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    arguments = ("imatrix", nano_llama, "-f", HELD_OUT, "--chunks", 2, "-c", 128, "-o", path)
    ran = minitron(*arguments, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["entries"] == 42 and ran.document["chunks"] == 2
    again = minitron(*arguments)
    assert again.code == 0 and again.out == f"{path} is up to date\n"
    fails(minitron(*arguments, "--process-output"), 1, "exists", "--force")
    assert minitron(*arguments, "--force", "-q").code == 0


def test_imatrix_merge_and_stats(minitron: Any, tmp_path: Path) -> None:
    path = tmp_path / "both.gguf"
    ran = minitron("imatrix-merge", IMATRIX, IMATRIX, "-o", path, "--json")
    assert ran.code == 0, ran.err
    assert ran.document["entries"] == 42 and ran.document["chunks"] == 173
    again = minitron("imatrix-merge", IMATRIX, IMATRIX, "-o", path, "--json")
    assert again.document == ran.document | {"kept": True}
    fails(minitron("imatrix-merge", IMATRIX, IMATRIX, IMATRIX, "-o", path), 1, "--force")
    fails(minitron("imatrix-merge", IMATRIX, "-o", tmp_path / "x.gguf"), 2, "two files")
    document = minitron("imatrix-stats", path, "--json").document
    assert len(document["weights"]) == 42 and len(document["layers"]) == 6
    table = minitron("imatrix-stats", path).out.splitlines()
    assert table[0].startswith("Weight") and len(table) == 1 + 42 + 1 + 1 + 6


def test_imatrix_names_unreached_experts(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
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


def test_imatrix_synthetic_keeps_its_text(minitron: Any, nano_llama: Path, tmp_path: Path) -> None:
    path, text = tmp_path / "m.gguf", tmp_path / "m.gguf.txt"
    arguments = ("imatrix", nano_llama, "-c", 32, "-b", 64, "--synthetic", 200)
    assert minitron(*arguments, "-o", path, "-q").code == 0
    made = path.read_bytes()
    assert text.stat().st_size > 200
    path.unlink()
    fails(minitron(*arguments, "-o", path), 1, "m.gguf.txt exists", "-f m.gguf.txt")
    assert minitron(*arguments, "-o", path, "--resume", "-q").code == 0
    assert path.read_bytes() == made
    fails(minitron("imatrix", nano_llama, "-o", tmp_path / "n.gguf"), 2, "no text", "--synthetic")

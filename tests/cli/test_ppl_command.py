"""minitron ppl as a user meets it: of one model, of many, and beside each other."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from helpers.support import EXAMPLES, fails
from minitron_cli.views.perplexity import notes_of
from minitron_quant.perplexity.measures import Divergence, Row
from minitron_quant.quantize.run import LevelResult

HELD_OUT = str(EXAMPLES / "held-out.txt")


def test_ppl_shows_one_model_or_a_table(
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


def test_ppl_resumes_and_marks_what_is_beaten(
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


def test_ppl_compare_shows_every_pair(
    minitron: Any, nano_llama: Path, llama_levels: dict[str, LevelResult]
) -> None:
    paths = [llama_levels[level].path for level in ("Q8_0", "Q4_0", "IQ1_S")]
    options = ("-f", HELD_OUT, "--chunks", 3, "-c", 128, "--compare")
    found = minitron("ppl", *paths, *options, "all", "--json").document["differences"]
    assert [each["b"] for each in found] == [paths[1].name, paths[2].name, paths[2].name]
    near = minitron("ppl", *options, *paths, "--json").document["differences"]
    q8, q4, iq1 = (path.name for path in paths)
    assert [(each["a"], each["b"]) for each in near] == [(iq1, q4), (q4, q8)]
    assert all(
        each["ppl_ratio_low"] <= each["ppl_ratio"] <= each["ppl_ratio_high"] for each in found
    )
    assert all(each["kld_difference"] is None for each in found)
    shown = minitron("ppl", *paths[1:], "--reference", nano_llama, *options)
    assert "PPL ratio" in shown.out and "KLD difference" in shown.out
    assert len(shown.out.splitlines()) == 4 + 2 + 1 + 4


def test_notes_of_gives_a_noise_floor_where_there_is_noise() -> None:
    none = Divergence(**{each.name: 4e-16 for each in fields(Divergence)})
    row = Row("a", "F16", 1.0, 9.0, 100.0, 100.0, 0.1, 4, "CPU", noise=none)
    assert "none" in notes_of([row])[0]
    louder = replace(none, kld_mean=2e-6, kld_max=3e-5)
    assert "2.0e-06" in notes_of([replace(row, noise=louder)])[0]

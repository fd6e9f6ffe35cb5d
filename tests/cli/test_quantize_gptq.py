"""quantize --gptq: which options go together, and one run from a text to a file."""

from pathlib import Path
from typing import Any

import pytest

from helpers.small_model import write_small
from helpers.support import EXAMPLES, fails
from helpers.tiny_gguf import write_tiny
from minitron_core.gguf import TYPE_ID, open_gguf
from minitron_quant.gptq import transformers_model
from minitron_quant.mixed_precision import costs


@pytest.mark.parametrize(
    "options, words",
    [
        (("--gptq",), "--text TEXT"),
        (("--gptq", "--text", "a.txt", "--covariance", "c.gguf"), "either a text or a covariance"),
        (("--covariance", "c.gguf"), "--gptq"),
        (("--effort", "high"), "--gptq"),
        (("--gptq", "--covariance", "c.gguf", "--effort", "high"), "collecting"),
        (("--gptq", "sequential", "--covariance", "c.gguf"), "takes a text"),
        (("--gptq", "two-sided", "--covariance", "c.gguf"), "two-sided takes a text"),
    ],
)
def test_quantize_refuses_gptq_options_that_exclude_each_other(
    options: tuple[str, ...], words: str, minitron: Any, short_llama: Path, tmp_path: Path
) -> None:
    fails(minitron("quantize", short_llama, "Q4_0", "-d", tmp_path, *options), 2, words)


def test_quantize_names_a_covariance_that_does_not_exist(
    minitron: Any, short_llama: Path, tmp_path: Path
) -> None:
    given = ("quantize", short_llama, "Q4_0", "-d", tmp_path, "--covariance", "c.gguf")
    fails(minitron(*given, "--gptq"), 3, "c.gguf does not exist")
    # llama.cpp's names are understood behind an option without its value
    fails(minitron(*given, "--gptq", "-t", 1), 3, "c.gguf does not exist")


def test_quantize_gptq_is_sequential_where_layers_can_run_one_by_one(
    minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    source = write_small(nano_llama, tmp_path / "small-F16.gguf")
    text = tmp_path / "short.txt"
    text.write_text((EXAMPLES / "calibration.txt").read_text()[:9000])
    folder = tmp_path / "out"
    given = ("quantize", source, "Q4_0", "-d", folder, "--text", text, "--json", "--gptq")
    given = (*given, "--calibration-chunks", 2)
    plan = minitron(*given, "--dry-run")
    assert plan.code == 0 and not folder.exists()
    assert "sequential GPTQ takes about" in plan.err
    takes = plan.document["gptq"]
    assert takes["method"] == "sequential" and takes["disk_bytes"] > takes["estimated_seconds"] > 0
    ran = minitron(*given)
    assert ran.code == 0, ran.err
    assert ran.document["levels"][0]["bytes"] == plan.document["levels"][0]["bytes"]
    file = open_gguf(folder / "small-Q4_0.gguf")
    assert file.get("minitron.gptq.method") == "sequential"
    assert file.get("minitron.gptq.tokens") == 2 * 512
    assert sorted(file.name for file in folder.iterdir()) == [
        "small-Q4_0.gguf",
        "small.manifest.json",
    ]
    errors = ("--errors", tmp_path / "errors.json")
    fails(minitron(*given, "--force", *errors), 2, "--gptq independent")


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_quantize_two_sided_names_what_to_install(
    more: tuple[str, ...],
    minitron: Any,
    short_llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transformers_model, "_LIBRARIES", ("not_installed",))
    given = ("quantize", short_llama, "Q4_0", "-d", tmp_path, "--gptq", "two-sided")
    ran = minitron(*given, "--text", EXAMPLES / "calibration.txt", *more)
    fails(ran, 4, "not_installed", 'pip install "minitron[transformers]"')
    assert not list(tmp_path.iterdir())


def test_quantize_size_takes_sequential_codes(
    minitron: Any, nano_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = frozenset(TYPE_ID[name] for name in ("q2_K", "q4_0", "q6_K"))
    monkeypatch.setattr(costs, "ENCODABLE", kinds)
    monkeypatch.setattr(costs, "_ROWS", 32)
    source = write_small(nano_llama, tmp_path / "small-F16.gguf")
    text = tmp_path / "short.txt"
    text.write_text((EXAMPLES / "calibration.txt").read_text()[:9000])
    ran = minitron("sensitivity", source, "-f", text, "-c", 64, "--tokens", 64)
    assert ran.code == 0, ran.err
    folder = tmp_path / "out"
    given = ("quantize", source, "-d", folder, "--gptq", "--text", text, "--calibration-chunks", 2)
    made = minitron(*given, "--bpw", "4.2", "--no-verify", "--json")
    assert made.code == 0, made.err
    assert made.document["gptq"] == "sequential" and made.document["kept"] == "solved"
    assert made.err.count("1024 tokens are few for inputs of 512 columns") == 1
    assert "to predict the divergence: sequential GPTQ takes about" in made.err
    file = open_gguf(Path(made.document["path"]))
    assert file.get("minitron.gptq.method") == "sequential"
    assert file.get("minitron.predicted_kld") == pytest.approx(made.document["predicted_kld"])
    assert file.path.stat().st_size == made.document["bytes"]
    curve = minitron(*given, "--curve", "--json")
    assert curve.document["gptq"] == "independent"
    assert "predicted with independent codes" in curve.err
    errors = ("--bpw", 4.2, "--no-verify", "--errors", tmp_path / "errors.json")
    fails(minitron(*given, *errors), 2, "--gptq independent")


def test_quantize_gptq_takes_models_whose_layers_cannot_run_alone(
    minitron: Any, tmp_path: Path
) -> None:
    source, text = write_tiny(tmp_path / "experts-F16.gguf", experts=4), EXAMPLES / "held-out.txt"
    given = ("quantize", source, "Q4_0", "-d", tmp_path, "--text", text, "--dry-run")
    ran = minitron(*given, "--gptq")
    assert "expert_count: GPTQ takes each matrix by itself" in ran.err
    assert ran.code == 4 and "error: the model has no vocabulary" in ran.err
    fails(minitron(*given, "--gptq", "sequential"), 4, "expert_count", "--gptq independent")


def test_quantize_gptq_collects_once_and_verifies(
    minitron: Any, short_llama: Path, tmp_path: Path, known_speed: None
) -> None:
    text = tmp_path / "short.txt"
    text.write_text((EXAMPLES / "calibration.txt").read_text()[:9000])
    folder = tmp_path / "out"
    given = (
        "quantize",
        short_llama,
        "Q4_0",
        "-d",
        folder,
        "--json",
        "--gptq",
        "independent",
        "--text",
        text,
    )
    plan = minitron(*given, "--dry-run")
    assert "collected when files are made" in plan.err and not folder.exists()
    assert "independent GPTQ takes about" in plan.err
    ran = minitron(*given)
    assert ran.code == 0, ran.err
    assert "tokens are few" in ran.err and "independent GPTQ takes about" in ran.err
    collected = minitron(*given, "--dry-run").document["estimated_seconds"]
    assert collected < plan.document["estimated_seconds"]
    assert [v["bytes"] for v in ran.document["levels"]] == [
        v["bytes"] for v in plan.document["levels"]
    ]
    assert sorted(file.name for file in folder.iterdir()) == [
        "nano-llama-Q4_0.gguf",
        "nano-llama.covariance.gguf",
        "nano-llama.manifest.json",
    ]
    (level,) = ran.document["levels"]
    assert not level["kept"]
    covariance = folder / "nano-llama.covariance.gguf"
    whole = covariance.read_bytes()
    covariance.write_bytes(whole[:100])
    damaged = minitron(*given, "--dry-run")
    assert damaged.code == 0 and damaged.document["estimated_seconds"] > collected
    covariance.write_bytes(whole)
    assert minitron(*given).document["levels"][0]["kept"]
    held_out = ("--held-out", EXAMPLES / "held-out.txt", "--chunks", 2)
    (proved,) = minitron(*given, *held_out).document["levels"]
    assert proved["kept"] in ("gptq", "plain")
    assert proved["change_pct"] == pytest.approx(
        100 * (proved["gptq_kld"] / proved["plain_kld"] - 1)
    )
    low, high = proved["difference"][1:]
    assert low <= proved["difference"][0] <= high


def test_quantize_gptq_dry_run_needs_no_importance_matrix(
    minitron: Any, short_llama: Path, tmp_path: Path
) -> None:
    given = ("quantize", short_llama, "IQ2_XXS", "-d", tmp_path, "--dry-run")
    fails(minitron(*given), 5, "importance matrix")
    ran = minitron(*given, "--gptq", "--text", EXAMPLES / "held-out.txt")
    assert ran.code == 0, ran.err
    fails(minitron(*given, "--gptq", "--text", "none.txt"), 3, "none.txt does not exist")
    assert not any(tmp_path.iterdir())

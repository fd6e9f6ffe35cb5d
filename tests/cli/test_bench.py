"""minitron bench: lists and ranges, one table for all, llama-bench's fields."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from helpers.support import fails
from minitron_cli.options.parameters import number_list
from minitron_core.errors import Usage
from minitron_quant.bench import run
from minitron_quant.bench.run import plan_tests

QUICK = ("-r", 2, "-t", 1, "-q")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512", (512,)),
        ("1,2", (1, 2)),
        ("1-3", (1, 2, 3)),
        ("0-1024+512,7", (0, 512, 1024, 7)),
        ("512-4096*2", (512, 1024, 2048, 4096)),
    ],
)
def test_number_list_takes_lists_and_ranges(text: str, expected: tuple[int, ...]) -> None:
    assert number_list(text) == expected


@pytest.mark.parametrize("text", ["", "x", "1,,2", "-4", "0-8*2", "1-8*1", "1.5"])
def test_number_list_refuses_what_llama_bench_refuses(text: str) -> None:
    with pytest.raises(Usage):
        number_list(text)


def test_plan_tests_covers_every_depth() -> None:
    names = [test.name for test in plan_tests((64, 0), (0, 16), (0, 256))]
    assert names == ["pp64", "tg16", "pp64 @ d256", "tg16 @ d256"]


def test_bench_has_the_fields_of_llama_bench(minitron: Any, nano_llama: Path) -> None:
    ran = minitron("bench", nano_llama, "-p", "32", "-n", "4", "--format", "json", *QUICK)
    prompt, generation = json.loads(ran.out)
    for key, value in (
        ("model_filename", str(nano_llama)),
        ("model_n_params", 7998784),
        ("model_size", 16004352),
        ("n_batch", 2048),
        ("n_ubatch", 512),
        ("n_threads", 1),
        ("n_prompt", 32),
        ("n_gen", 0),
        ("n_depth", 0),
    ):
        assert prompt[key] == value
    assert generation["n_prompt"] == 0 and generation["n_gen"] == 4
    for row in (prompt, generation):
        count = row["n_prompt"] + row["n_gen"]
        speeds = [1e9 * count / ns for ns in row["samples_ns"]]
        assert row["samples_ts"] == pytest.approx(speeds, abs=1e-3)
        assert row["avg_ts"] == pytest.approx(sum(speeds) / 2, rel=1e-6)
        assert row["avg_ns"] == pytest.approx(sum(row["samples_ns"]) / 2, abs=1)
        assert row["peak_memory_bytes"] > row["model_size"]


def test_bench_shows_models_and_settings_in_one_table(
    minitron: Any, nano_llama: Path, nano_nemotron: Path
) -> None:
    words = ("bench", nano_llama, nano_nemotron, "-p", 8, "-n", 0, "--ubatch", "4,8", *QUICK)
    rows = list(csv.DictReader(io.StringIO(minitron(*words, "--format", "csv").out)))
    assert [(Path(row["model_filename"]).name, row["n_ubatch"]) for row in rows] == [
        ("nano-llama-F16.gguf", "4"),
        ("nano-llama-F16.gguf", "8"),
        ("nano-nemotron-F16.gguf", "4"),
        ("nano-nemotron-F16.gguf", "8"),
    ]
    header, *lines = minitron(*words).out.splitlines()
    assert "Micro-batch" in header and "Threads" not in header and len(lines) == 4


@pytest.mark.parametrize(
    "words",
    [("-p", "0", "-n", "0"), ("--cache-type-k", "q9"), ("-b", "0"), ("-p", "many")],
)
def test_bench_refuses_wrong_settings(
    minitron: Any, nano_llama: Path, words: tuple[str, ...]
) -> None:
    ran = minitron("bench", nano_llama, *words)
    assert ran.code == 2 and ran.out == "" and "Traceback" not in ran.err


def test_bench_help(minitron: Any) -> None:
    ran = minitron("bench", "--help")
    assert ran.code == 0 and "minitron bench" in ran.out and "Examples" in ran.out


def test_bench_shows_what_was_measured_before_a_failure(
    minitron: Any, nano_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails(minitron("bench", nano_llama, "absent.gguf"), 3, "absent.gguf")
    real = run.measure_speed

    def fail_to_generate(model: Any, test: Any, *more: Any) -> Any:
        if test.n_gen:
            raise KeyboardInterrupt
        return real(model, test, *more)

    monkeypatch.setattr(run, "measure_speed", fail_to_generate)
    ran = minitron("bench", nano_llama, "-p", 8, "-n", 4, "--json", *QUICK)
    assert ran.code == 130
    assert [row["test"] for row in ran.document] == ["pp8"]

"""What fits into memory: sizes are llama.cpp's, the choice follows what is measured."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.support import fails
from minitron_engine.llama import log
from minitron_engine.llama.context import ContextSettings, open_context
from minitron_engine.llama.model import ModelSettings, open_model
from minitron_engine.memory.estimate import Needs, measure_needs
from minitron_quant import advise
from minitron_quant.advise import Budget, Candidate, Fit

NEEDS = Needs(layers=2, cache=20, compute=5)
CANDIDATE = Candidate("Q4_K_M", None, 300, layers=(100, 100), input=50, output=60)


@pytest.mark.parametrize("name", ["nano-llama", "nano-nemotron"])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_needs_are_what_llama_cpp_allocates(
    name: str, cache: str, nano_llama: Path, nano_nemotron: Path
) -> None:
    path = nano_llama if name == "nano-llama" else nano_nemotron
    settings = ContextSettings(1000, 512, cache_type_k=cache, cache_type_v=cache)
    needs = measure_needs(path, settings)
    with (
        log.capture() as lines,
        open_model(ModelSettings(path)) as model,
        open_context(model, settings),
    ):
        pass
    text = "\n".join(lines)
    told = {kind: _mib(rf"{kind} buffer size = *([\d.]+) MiB", text) for kind in ("KV", "compute")}
    told["output"] = _mib(r"output buffer size = *([\d.]+) MiB", text)
    assert needs.cache == pytest.approx(told["KV"], rel=0.01)
    assert needs.compute == pytest.approx(told["compute"] + told["output"], rel=0.01)


def _mib(pattern: str, text: str) -> float:
    return sum(map(float, re.findall(pattern, text))) * 2**20


def test_layers_go_to_the_gpu_from_the_output_on() -> None:
    # 5 for the buffers, 60 for the output, 110 for each layer with its cache
    fits = {vram: advise.fit(CANDIDATE, NEEDS, Budget(vram, 1000, 0)) for vram in (64, 65, 285)}
    assert [(f.offloaded, f.vram, f.ram) for f in fits.values()] == [
        (0, 0, 50 + 5 + 60 + 220),
        (1, 65, 50 + 5 + 220),
        (3, 285, 55),
    ]
    assert fits[285].whole
    reserved = advise.fit(CANDIDATE, NEEDS, Budget(285, 1000, reserve=1))
    assert reserved.offloaded == 2
    assert not advise.fit(CANDIDATE, NEEDS, Budget(64, 334, 0)).fits


def test_the_choice_follows_what_is_measured() -> None:
    small = advise.fit(CANDIDATE, NEEDS, Budget(1000, 1000, 0))
    large = replace(small, level="Q8_0", bytes=600)
    assert advise.choose([small, large])[0] == large
    better = [replace(small, kld_mean=0.01, ppl=9.0), replace(large, kld_mean=0.02, ppl=8.0)]
    assert advise.choose(better)[0] == better[0]
    partial = replace(large, offloaded=1)
    assert advise.choose([small, partial])[0] == small
    chosen, why = advise.choose([replace(small, offloaded=2), partial])
    assert chosen is not None and chosen.level == "Q4_K_M"
    assert "2 of 3 layers" in why
    assert advise.choose([replace(small, fits=False)])[0] is None


def test_every_level_of_a_full_model_is_advised(minitron: Any, nano_llama: Path) -> None:
    found = minitron("advise", nano_llama, "--vram", "1G", "--ctx", "512", "--json")
    document = json.loads(found.out)
    assert len(document["levels"]) == 28
    assert document["choice"] == "F16"
    sizes = {each["level"]: each["bytes"] for each in document["levels"]}
    assert sizes["IQ1_S"] < sizes["Q4_K_M"] < sizes["F16"] < nano_llama.stat().st_size


def test_a_folder_is_advised_with_its_report(
    minitron: Any, nano_llama: Path, tmp_path: Path
) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).symlink_to(nano_llama)
    rows = [{"level": "F16", "ppl": 4.5, "kld_mean": None}]
    (tmp_path / "report.json").write_text(json.dumps({"rows": rows}))
    found = minitron("advise", tmp_path, "--vram", "0", "--ram", "2G")
    assert found.code == 0
    assert "0/7" in found.out and "4.5000" in found.out
    nothing = minitron("advise", tmp_path, "--vram", "0", "--ram", "1M")
    assert nothing.out.startswith("Nothing fits")


def test_bad_input_is_named(minitron: Any, tmp_path: Path, nano_llama: Path) -> None:
    fails(minitron("advise", tmp_path, "--vram", "6G"), 3, "no model")
    assert minitron("advise", nano_llama, "--vram", "lots").code == 2
    broken = tmp_path / "table.json"
    broken.write_text("[]")
    found = minitron("advise", nano_llama, "--vram", "6G", "--table", broken)
    fails(found, 8, "no table of measurements")


def test_rows_without_a_measurement_rank_last() -> None:
    fit = advise.fit(CANDIDATE, NEEDS, Budget(1000, 1000, 0))
    unmeasured = replace(fit, level="Q8_0", bytes=10**6)
    assert isinstance(fit, Fit)
    assert advise.choose([replace(fit, kld_mean=0.5), unmeasured])[0] != unmeasured

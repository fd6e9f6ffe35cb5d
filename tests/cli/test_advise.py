"""What fits into memory: sizes are llama.cpp's, the choice follows what is measured."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, fails
from minitron_cli.units import parse_memory
from minitron_core.errors import Usage
from minitron_engine.llama import log
from minitron_engine.llama.context import open_context
from minitron_engine.llama.devices import Device
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_engine.memory.estimate import MemoryEstimate, estimate_memory
from minitron_engine.memory.gpu_layers import MARGIN, choose_layers
from minitron_quant import advise
from minitron_quant.advise import Budget, Candidate, Fit

NEEDS = MemoryEstimate(layers=2, cache=20, compute=5)
CANDIDATE = Candidate("Q4_K_M", None, 300, weights=(100, 100, 60), embedding=50)


@pytest.mark.parametrize("name", ["nano-llama", "nano-nemotron"])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_measure_needs_is_what_llama_cpp_allocates(
    name: str, cache: str, nano_llama: Path, nano_nemotron: Path
) -> None:
    path = nano_llama if name == "nano-llama" else nano_nemotron
    settings = ContextSettings(1000, 512, cache_type_k=cache, cache_type_v=cache)
    needs = estimate_memory(path, settings)
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


def test_fit_offloads_from_the_output_backwards() -> None:
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


@pytest.mark.parametrize("room", [0.3, 0.6, 0.9, 1.0, 1.5])
def test_fit_agrees_with_auto_offload(room: float, nano_llama: Path) -> None:
    context = ContextSettings(512, 512)
    needs = estimate_memory(nano_llama, context)
    (candidate,) = (each for each in advise.candidates(nano_llama) if each.path is not None)
    whole = sum(candidate.weights) + needs.cache + needs.compute
    vram = MARGIN + round(room * whole)
    # under the name of llama.cpp's CPU buffers, which a machine without a GPU measures
    gpu = Device("CPU", "", "gpu", vram, vram)
    chosen = choose_layers(ModelSettings(nano_llama, "auto", context=context), [gpu])
    found = advise.fit(candidate, needs, Budget(vram, 1 << 40))
    assert found.offloaded == min(chosen.layers, found.layers)
    assert found.whole is (room >= 1)


def test_choose_follows_the_measurements() -> None:
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


def test_advise_plans_every_level_of_a_full_model(minitron: Any, nano_llama: Path) -> None:
    found = minitron("advise", nano_llama, "--vram", "1G", "--ctx", "512", "--json")
    document = json.loads(found.out)
    assert len(document["levels"]) == 28
    assert document["choice"] == "F16"
    sizes = {each["level"]: each["bytes"] for each in document["levels"]}
    assert sizes["IQ1_S"] < sizes["Q4_K_M"] < sizes["F16"] < nano_llama.stat().st_size


def test_advise_reads_the_report_of_a_folder(
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


def test_advise_refuses_bad_input(minitron: Any, tmp_path: Path, nano_llama: Path) -> None:
    fails(minitron("advise", tmp_path, "--vram", "6G"), 3, "no model")
    assert minitron("advise", nano_llama, "--vram", "lots").code == 2
    broken = tmp_path / "table.json"
    broken.write_text("[]")
    found = minitron("advise", nano_llama, "--vram", "6G", "--table", broken)
    fails(found, 8, "not a table of measurements")


@pytest.mark.parametrize("text", ["6", "6G", "6GB", "6 GiB", "6144M", str(6 << 30)])
def test_parse_memory_reads_gigabytes_where_bytes_make_no_sense(text: str) -> None:
    assert parse_memory(text) == 6 << 30


def test_parse_memory_keeps_fractions_and_refuses_what_is_neither() -> None:
    assert (parse_memory("0"), parse_memory("0.5")) == (0, 1 << 29)
    with pytest.raises(Usage, match="neither gigabytes nor bytes"):
        parse_memory("8000")


def test_advise_plans_the_levels_of_a_checkpoint(minitron: Any, nano_llama: Path) -> None:
    given = ("--vram", "2", "--ctx", "512", "--json")
    checkpoint = minitron("advise", EXAMPLES / "nano-llama", *given).document
    assert checkpoint["choice"] == "BF16" and checkpoint["level"] == "Q8_0"
    assert all(each["path"] is None for each in checkpoint["levels"])
    converted = minitron("advise", nano_llama, *given).document
    planned = [
        {each["level"]: each["bytes"] for each in document["levels"] if each["path"] is None}
        for document in (checkpoint, converted)
    ]
    assert planned[1].items() <= planned[0].items() and len(planned[1]) == 27
    told = minitron("advise", EXAMPLES / "nano-llama", "--vram", "2", "--ctx", "512").out
    assert f"Next: minitron quantize {EXAMPLES / 'nano-llama'} Q8_0" in told


def test_choose_names_the_full_model_beside_the_best_level() -> None:
    level = replace(advise.fit(CANDIDATE, NEEDS, Budget(1000, 1000, 0)), kld_mean=0.01)
    full = replace(level, level="F16", bytes=600, kld_mean=None, ppl=9.0)
    assert advise.choose([level, full])[0] == full
    assert advise.best_level([level, full]) == level
    assert advise.choose([level, replace(full, offloaded=1)])[0] == level


def test_choose_ranks_unmeasured_levels_last() -> None:
    fit = advise.fit(CANDIDATE, NEEDS, Budget(1000, 1000, 0))
    unmeasured = replace(fit, level="Q8_0", bytes=10**6)
    assert isinstance(fit, Fit)
    assert advise.choose([replace(fit, kld_mean=0.5), unmeasured])[0] != unmeasured

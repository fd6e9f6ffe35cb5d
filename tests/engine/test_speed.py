"""Speed, and what it takes: the numbers of llama-bench, peak memory, energy counters."""

import statistics
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.bench import memory_energy, speed
from minitron_quant.bench.speed import SpeedResult, SpeedTest, measure_speed, spread

SETTINGS = ContextSettings(n_ctx=0, n_batch=16, threads=1)


def test_numbers_of_a_result() -> None:
    result = SpeedResult(SpeedTest(64, 0, 128), (32_000_000, 64_000_000), (3.2, 6.4))
    assert result.test.name == "pp64 @ d128"
    assert result.samples_ts == (2000.0, 1000.0)
    assert spread(result.samples_ts) == pytest.approx(statistics.stdev([2000, 1000]))
    assert result.joules_per_token == pytest.approx(4.8 / 64)
    assert spread([5.0]) == 0
    assert SpeedTest(32, 8).name == "pp32+tg8"


def test_runs_decode_what_the_test_says(nano_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm-up, then in every repetition the same tokens in the cache and the same work."""
    decoded: list[tuple[int, int]] = []

    decode = Context.decode_struct

    def watched(context: Context, batch: Any) -> None:
        memory = api.llama_get_memory(context.handle)
        decoded.append((api.llama_memory_seq_pos_max(memory, 0) + 1, batch.n_tokens))
        decode(context, batch)

    monkeypatch.setattr(Context, "decode_struct", watched)
    ticks: list[str] = []
    with open_model(ModelSettings(nano_llama, gpu_layers=0)) as model:
        result = measure_speed(model, SpeedTest(20, 2, 24), SETTINGS, 2, ticks.append)
    warm_up = [(0, 16), (16, 4), (20, 1)]
    test = [(24, 16), (40, 4), (44, 1), (45, 1)]
    assert decoded == [*warm_up, (0, 16), (16, 8), *test, *test]
    assert ticks == ["warm-up", "1/2", "2/2"]
    assert len(result.samples_ns) == 2 and min(result.samples_ns) > 0


def test_peak_memory_is_that_since_the_reset() -> None:
    """In a process of its own: the memory of other tests comes and goes as it likes."""
    if not memory_energy.reset_peak_memory():
        pytest.skip("this system cannot reset the peak")
    code = """
        import mmap
        from minitron_quant.bench import memory_energy
        memory_energy.reset_peak_memory()
        before = memory_energy.peak_memory()
        with mmap.mmap(-1, 64 << 20) as block:
            for page in range(0, len(block), mmap.PAGESIZE):
                block[page] = 1
            print(memory_energy.peak_memory() - before)
        memory_energy.reset_peak_memory()
        print(memory_energy.peak_memory() - before)
    """
    words = (sys.executable, "-c", textwrap.dedent(code))
    used, left = map(int, subprocess.check_output(words, text=True).split())
    assert used >= 60 << 20
    assert left < 16 << 20


def test_energy_counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, energy in (("intel-rapl:0", "1500000"), ("intel-rapl:0:0", "7"), ("other", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(f"package-{name[-1]}\n")
        (tmp_path / name / "energy_uj").write_text(energy)
    (tmp_path / "intel-rapl:1").mkdir()  # a counter that may not be read
    monkeypatch.setattr(memory_energy, "_RAPL", tmp_path)
    monkeypatch.setattr(memory_energy, "_nvml", Card)
    processors = memory_energy.energy_counters(gpus=False)
    assert [read() for read in processors] == [{"package-0": 1.5}]
    counters = memory_energy.energy_counters(gpus=True)
    before = speed._read(counters)
    assert before == {"package-0": 1.5, "gpu-0": 2.5}
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("2500000")
    assert speed._spent(before, speed._read(counters)) == [1.0]
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("10")  # wrapped around
    assert speed._spent(before, speed._read(counters)) == []


class Card:
    """As much of NVML as is used: two cards, one of which does not count its energy."""

    def nvmlDeviceGetCount_v2(self, count: object) -> int:
        count._obj.value = 2  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: object) -> int:
        device._obj.value = index + 1  # type: ignore[attr-defined]
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, device: object, energy: object) -> int:
        energy._obj.value = 2500  # type: ignore[attr-defined]
        return 0 if device.value == 1 else 3  # type: ignore[attr-defined]

"""Every model with every setting through every test, a row with llama-bench's fields for each."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from minitron_core.cpu_limits import default_threads
from minitron_core.errors import Usage
from minitron_core.progress import Event, Progress
from minitron_core.quoting import quoted
from minitron_engine.llama.devices import Device, devices
from minitron_engine.llama.library import LLAMA_CPP_COMMIT
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import (
    CACHE_TYPES,
    EVERY_GPU,
    FLASH_ATTENTION,
    ContextSettings,
    GpuLayers,
    ModelSettings,
    Placement,
)
from minitron_engine.loading import open_model
from minitron_quant.bench.memory_energy import peak_memory, reset_peak_memory
from minitron_quant.bench.speed import SpeedResult, SpeedTest, measure_speed, spread
from minitron_quant.levels import level_of_ftype
from minitron_quant.model_files import open_model_files


@dataclass(frozen=True)
class BenchPlan:
    """What to measure; models are loaded once per number of layers on GPUs."""

    models: tuple[Path, ...]
    layers: tuple[GpuLayers, ...]
    contexts: tuple[ContextSettings, ...]
    tests: tuple[SpeedTest, ...]
    repetitions: int
    placement: Placement = EVERY_GPU

    def rows(self, listener: Progress) -> Iterator[dict[str, Any]]:
        """The measured rows, one after another, with llama-bench's fields."""
        whole = len(self.models) * len(self.layers) * len(self.contexts) * len(self.tests)
        done = itertools.count()
        for path in self.models:
            open_model_files(path)  # all of them first: a wrong name must not fail hours later
        n_ctx = max(test.n_prompt + test.n_gen + test.n_depth for test in self.tests)
        largest = replace(max(self.contexts, key=lambda one: one.n_ubatch), n_ctx=n_ctx)
        for path, layers in itertools.product(self.models, self.layers):
            reset_peak_memory()
            free = _free_on_cards()
            loading = ModelSettings(path, layers, placement=self.placement, context=largest)
            with open_model(loading) as model:
                facts = _facts_of(path, model)
                for settings, test in itertools.product(self.contexts, self.tests):
                    name, number = f"{path.name} {test.name}", next(done)
                    tick = _Tick(listener, name, number, whole, 1 / (self.repetitions + 1))
                    result = measure_speed(model, test, settings, self.repetitions, tick)
                    used = None if free is None else free - tick.least_free
                    yield facts | _settings_of(settings) | _measured(result, used)


class _Tick:
    """Called before each run of a test: reports it and notes the free memory of the GPUs."""

    def __init__(
        self, listener: Progress, name: str, number: int, whole: int, share: float
    ) -> None:
        self._listener, self._name, self._whole = listener, name, whole
        self._done, self._share = float(number), share
        self.least_free = 1 << 62

    def __call__(self, run: str) -> None:
        self._listener(Event("bench", self._done, self._whole, "tests", f"{self._name} {run}"))
        self._done += self._share
        self.least_free = min(self.least_free, _free_on_cards() or 0)


def _free_on_cards() -> int | None:
    cards = [device for device in devices() if device.kind != "cpu"]
    return sum(card.free for card in cards) if cards else None


def plan_tests(
    prompts: Sequence[int], lengths: Sequence[int], depths: Sequence[int]
) -> tuple[SpeedTest, ...]:
    """At each depth each prompt alone and each generation alone; 0 leaves one out."""
    return tuple(
        test
        for depth in depths
        for test in (
            *(SpeedTest(n, 0, depth) for n in prompts if n),
            *(SpeedTest(0, n, depth) for n in lengths if n),
        )
    )


def plan_contexts(
    batches: Sequence[int],
    ubatches: Sequence[int],
    threads: Sequence[int | None],
    cache_types_k: Sequence[str],
    cache_types_v: Sequence[str],
    flash_attentions: Sequence[str],
) -> tuple[ContextSettings, ...]:
    """The product of all lists. Usage: a type or mode that llama.cpp does not know."""
    for word, known in (
        *((name, CACHE_TYPES) for name in (*cache_types_k, *cache_types_v)),
        *((name, FLASH_ATTENTION) for name in flash_attentions),
    ):
        if word not in known:
            raise Usage(f"{quoted(word)} is not one of {', '.join(known)}")
    if min((*batches, *ubatches, *(count or 1 for count in threads))) < 1:
        raise Usage("a batch and the threads are at least 1")
    return tuple(
        ContextSettings(
            n_ctx=0,  # as large as the test needs
            n_batch=batch,
            n_ubatch=ubatch,
            threads=count,
            cache_type_k=key,
            cache_type_v=value,
            flash_attention=flash,
        )
        for batch, ubatch, count, key, value, flash in itertools.product(
            batches, ubatches, threads, cache_types_k, cache_types_v, flash_attentions
        )
    )


def _facts_of(path: Path, model: Model) -> dict[str, Any]:
    found = devices()
    cards = [device for device in found if device.kind != "cpu"]
    header = open_model_files(path)[0]
    return {
        "build_commit": LLAMA_CPP_COMMIT,
        "cpu_info": _names(device for device in found if device.kind == "cpu"),
        "gpu_info": _names(cards),
        "backends": ",".join(
            sorted({device.name.rstrip("0123456789") for device in cards}) or ["CPU"]
        ),
        "model_filename": str(path),
        "model_type": model.description,
        "model_level": level_of_ftype(header.get("general.file_type")),
        "model_size": model.size,
        "model_n_params": model.n_params,
        "n_gpu_layers": model.offloaded,
    }


def _names(found: Iterator[Device] | Sequence[Device]) -> str:
    return ", ".join(device.description for device in found)


def _settings_of(settings: ContextSettings) -> dict[str, Any]:
    return {
        "n_batch": settings.n_batch,
        "n_ubatch": min(settings.n_ubatch, settings.n_batch),
        "n_threads": settings.threads or default_threads(),
        "type_k": settings.cache_type_k,
        "type_v": settings.cache_type_v,
        "flash_attn": settings.flash_attention,
    }


def _measured(result: SpeedResult, on_cards: int | None) -> dict[str, Any]:
    test, times, speeds = result.test, result.samples_ns, result.samples_ts
    energy = result.joules_per_token
    return {
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "n_depth": test.n_depth,
        "test": test.name,
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": round(sum(times) / len(times)),
        "stddev_ns": round(spread(times)),
        "avg_ts": round(sum(speeds) / len(speeds), 6),
        "stddev_ts": round(spread(speeds), 6),
        "peak_memory_bytes": peak_memory(),
        "device_memory_bytes": on_cards,
        "joules_per_token": None if energy is None else round(energy, 6),
        "samples_ns": list(times),
        "samples_ts": [round(speed, 3) for speed in speeds],
    }

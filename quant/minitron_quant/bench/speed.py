"""Speed of a model as llama-bench measures it: random tokens, no tokenizer, no sampler."""

import statistics
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np

from minitron_engine.generation.sequence import Sequence
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings
from minitron_quant.bench.memory_energy import Joules, energy_counters

Tick = Callable[[str], None]


@dataclass(frozen=True)
class SpeedTest:
    """Process a prompt, then generate, both in tokens, on a cache that holds `n_depth` already."""

    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench calls it: pp512, tg128, tg128 @ d4096."""
        parts = (("pp", self.n_prompt), ("tg", self.n_gen))
        name = "+".join(f"{kind}{count}" for kind, count in parts if count)
        return name + (f" @ d{self.n_depth}" if self.n_depth else "")


@dataclass(frozen=True)
class SpeedResult:
    """The repetitions of a test: nanoseconds, and joules where counters can be read."""

    test: SpeedTest
    samples_ns: tuple[int, ...]
    samples_joules: tuple[float, ...] = ()

    @property
    def samples_ts(self) -> tuple[float, ...]:
        """Tokens per second: 1e9 · (n_prompt + n_gen) / ns."""
        return tuple(1e9 * (self.test.n_prompt + self.test.n_gen) / ns for ns in self.samples_ns)

    @property
    def joules_per_token(self) -> float | None:
        """Energy of a token, mean over the repetitions; None where nothing tells."""
        if not self.samples_joules:
            return None
        return statistics.fmean(self.samples_joules) / (self.test.n_prompt + self.test.n_gen)


def spread(samples: Collection[float]) -> float:
    """The sample standard deviation (n - 1); 0 for a single sample."""
    return statistics.stdev(samples) if len(samples) > 1 else 0.0


def measure_speed(
    model: Model, test: SpeedTest, settings: ContextSettings, repetitions: int, tick: Tick
) -> SpeedResult:
    """Run a test `repetitions` times after a warm-up; calls `tick` before each run.

    The context is as large as the test needs, whatever `settings` says. Errors: OutOfResources.
    """
    n_ctx = test.n_prompt + test.n_gen + test.n_depth
    generator = np.random.default_rng(1)
    counters = energy_counters(gpus=model.offloaded > 0)
    samples, joules = [], []
    with open_context(model, replace(settings, n_ctx=n_ctx)) as context:
        run = _Run(context, generator)
        tick("warm-up")
        run.process(test.n_prompt)
        run.generate(min(test.n_gen, 1))
        for number in range(repetitions):
            tick(f"{number + 1}/{repetitions}")
            run.fill(test.n_depth)
            before = _read(counters)
            started = time.perf_counter_ns()
            run.process(test.n_prompt)
            run.generate(test.n_gen)
            samples.append(time.perf_counter_ns() - started)
            joules += _spent(before, _read(counters))
    return SpeedResult(test, tuple(samples), tuple(joules))


def _read(counters: Iterable[Callable[[], Joules]]) -> Joules:
    return {name: value for read in counters for name, value in read().items()}


def _spent(before: Joules, after: Joules) -> list[float]:
    spent = [after[name] - before[name] for name in before]
    # counters wrap around; a run in which one did says nothing
    return [sum(spent)] if spent and min(spent) >= 0 else []


class _Run:
    """Random tokens into one sequence of a context."""

    def __init__(self, context: Context, generator: np.random.Generator) -> None:
        self._context, self._generator = context, generator
        self._sequence = Sequence(context)

    def fill(self, depth: int) -> None:
        """Leave exactly `depth` tokens in the cache: of those that are there, or new ones."""
        tokens = self._sequence.tokens
        if len(tokens) >= depth and self._context.truncate(depth):
            del tokens[depth:]
            return
        self._context.clear()
        tokens.clear()
        self.process(depth)

    def process(self, count: int) -> None:
        """Decode `count` tokens in batches and wait for the device."""
        self._sequence.append(self._tokens(count))
        self._context.synchronize()

    def generate(self, count: int) -> None:
        """Decode `count` tokens one by one, waiting for the device after each."""
        for token in self._tokens(count):
            self._sequence.append([token])
            self._context.synchronize()

    def _tokens(self, count: int) -> list[int]:
        model = self._context.model
        drawn = self._generator.integers(0, model.n_vocab, count, dtype=np.int32)
        tokens: list[int] = drawn.tolist()
        if count and not self._sequence.tokens and model.add_bos:
            tokens[0] = model.bos
        return tokens

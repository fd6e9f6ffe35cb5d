"""Two contexts give the sums of one, to the byte, and stop together."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.mixture import write_mixture
from helpers.support import EXAMPLES, quantize
from minitron_core.errors import MinitronError
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings
from minitron_quant.imatrix import parallel_contexts
from minitron_quant.imatrix.collect import CollectSettings, collect
from minitron_quant.imatrix.collector import Collector
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.imatrix.ordered_accumulation import AccumulationOrder

CALIBRATION = EXAMPLES / "calibration.txt"
SMALL = ChunkSettings(n_ctx=64, n_batch=256, limit=12, threads=2)
IN_TWO, IN_ONE = [1, 1], [2]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The threads of every context that a collection opens."""
    found: list[int] = []
    original = parallel_contexts.open_context

    def watched(model: Any, settings: Any, hook: Any) -> Any:
        found.append(settings.threads)
        return original(model, settings, hook)

    monkeypatch.setattr(parallel_contexts, "open_context", watched)
    return found


def collected(model: Path, chunks: ChunkSettings, target: Path, **more: Any) -> bytes:
    with open_model(ModelSettings(model)) as loaded:
        write_imatrix(target, collect(loaded, CollectSettings((CALIBRATION,), chunks, **more)))
    return target.read_bytes()


@pytest.mark.parametrize(
    ("n_ctx", "n_batch", "limit", "contexts"),
    [
        (64, 256, 12, IN_TWO),
        (64, 256, 7, IN_TWO),  # the last group has 3 chunks
        (64, 256, 5, IN_TWO),  # or one, of which the second context has none
        (512, 2048, 7, IN_TWO),  # of 3 chunks llama.cpp takes 170 tokens each, and 2 that are left
        (520, 2080, 7, IN_ONE),  # 10 left: 30 tokens count, 10 of them alone would not
        (50, 150, 6, IN_TWO),
        (50, 350, 14, IN_TWO),
        (49, 147, 6, IN_ONE),  # 98 rows: the last two of them would be left over
        (64, 64, 4, IN_ONE),  # nothing to divide
    ],
)
def test_collect_gives_the_same_bytes_with_any_threads(
    n_ctx: int,
    n_batch: int,
    limit: int,
    contexts: list[int],
    short_llama: Path,
    tmp_path: Path,
    opened: list[int],
) -> None:
    chunks = [ChunkSettings(n_ctx, n_batch, limit, threads) for threads in (1, 2)]
    one = collected(short_llama, chunks[0], tmp_path / "m.gguf")
    assert opened == [1]
    assert collected(short_llama, chunks[1], tmp_path / "m.gguf") == one
    assert opened[1:] == contexts


def test_collect_in_two_contexts_on_quantized_weights_and_other_norms(
    nano_nemotron: Path, short_llama: Path, tmp_path: Path, opened: list[int]
) -> None:
    # repacked weights are multiplied with four rows at once
    quantized = quantize(short_llama, tmp_path, "Q4_0")["Q4_0"].path
    for model in (nano_nemotron, quantized):
        files = [
            collected(model, ChunkSettings(64, 192, 6, threads), tmp_path / "m.gguf")
            for threads in (1, 2)
        ]
        assert files[0] == files[1]
    assert opened == [1, *IN_TWO] * 2


def test_open_decoder_uses_one_context_for_experts_and_perplexity(
    nano_llama: Path, tmp_path: Path, opened: list[int]
) -> None:
    collected(write_mixture(nano_llama, tmp_path / "moe.gguf"), SMALL, tmp_path / "m.gguf")
    collected(nano_llama, SMALL, tmp_path / "m.gguf", perplexity=True)
    assert opened == IN_ONE * 2


@pytest.mark.parametrize("leads", [True, False], ids=["first", "second"])
def test_collect_stops_both_contexts_at_an_error_of_either_collector(
    leads: bool, short_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Collector._add_dense

    def failing(self: Collector, *given: Any) -> None:
        if self.decode_number >= 2 and (self._leader is self) is leads:
            raise MinitronError("a row was lost")
        original(self, *given)

    monkeypatch.setattr(Collector, "_add_dense", failing)
    with pytest.raises(MinitronError, match="a row was lost"):
        collected(short_llama, SMALL, tmp_path / "m.gguf")


@pytest.mark.parametrize("fails", ["MainThread", "imatrix_0"])
def test_collect_stops_both_contexts_at_a_failed_decode_of_either(
    fails: str, short_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, seen = parallel_contexts.decode_part, []

    def failing(*given: Any) -> int:
        seen.append(threading.current_thread().name)
        if seen[-1] == fails and seen.count(fails) == 3:
            raise MinitronError("llama.cpp failed to decode")
        return original(*given)

    monkeypatch.setattr(parallel_contexts, "decode_part", failing)
    with pytest.raises(MinitronError, match="failed to decode"):
        collected(short_llama, SMALL, tmp_path / "m.gguf")


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("slow", [0, 1])
def test_accumulation_order_adds_to_every_sum_in_order(slow: int) -> None:
    order, found = AccumulationOrder(), {"a": list[int](), "b": list[int](), "c": list[int]()}

    def run(first: int) -> None:
        for number in range(first, 40, 2):
            assert order.begin(number)
            for name, numbers in found.items():
                if (name, number % 8) == ("b", 5):
                    continue  # a product too small to count
                if first == slow:
                    time.sleep(0.0002)
                with order.adding(name, number):
                    numbers.append(number)
            order.end(number)

    threads = [started(lambda first=first: run(first)) for first in (0, 1)]  # type: ignore[misc]
    for thread in threads:
        thread.join()
    assert found["a"] == found["c"] == list(range(40))
    assert found["b"] == [number for number in range(40) if number % 8 != 5]


def test_accumulation_order_stop_releases_waiting_threads() -> None:
    order, found = AccumulationOrder(), list[object]()

    def second() -> None:
        found.append(order.begin(1))
        with order.adding("a", 3):
            found.append("not ordered any more")

    thread = started(second)
    order.end(0)
    time.sleep(0.01)
    assert found == [True]  # decode 2 has not added yet
    order.stop()
    thread.join()
    assert len(found) == 2 and not order.begin(5)

"""Forecasts count the products that a token makes."""

from pathlib import Path

import pytest

from helpers.tiny_gguf import FFN, HIDDEN, LAYERS, VOCABULARY, write_tiny
from minitron_quant import decode_forecast
from minitron_quant.decode_forecast import LLAMA_CPP, decode_seconds
from minitron_quant.model_files import open_model_files

ATTENTION = 3 * HIDDEN**2  # q, k and v of half the width, output
FEED_FORWARD = 3 * HIDDEN * FFN


@pytest.fixture(autouse=True)
def _one_operation_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_forecast, "operations_per_second", lambda: LLAMA_CPP)


def test_decode_seconds_counts_output_rows_of_the_tokens_with_logits(tmp_path: Path) -> None:
    shards = open_model_files(write_tiny(tmp_path / "dense.gguf"))
    layers, output = LAYERS * (ATTENTION + FEED_FORWARD), VOCABULARY * HIDDEN
    assert decode_seconds(shards, 10, 0, threads=1) == 2 * 10 * layers
    assert decode_seconds(shards, 10, 0.5, threads=2) == 10 * (layers + output / 2)


def test_decode_seconds_counts_the_experts_in_use(tmp_path: Path) -> None:
    shards = open_model_files(write_tiny(tmp_path / "experts.gguf", experts=4))
    layer = ATTENTION + 4 * HIDDEN + 2 * FEED_FORWARD  # the router, and two of four experts
    assert decode_seconds(shards, 1, 0, threads=1) == 2 * LAYERS * layer

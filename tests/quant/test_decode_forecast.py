"""Forecasts count the products that a token makes."""

from pathlib import Path

import pytest

from helpers.tiny_gguf import FFN, HIDDEN, LAYERS, VOCABULARY, write_tiny
from minitron_engine.llama import product_speed
from minitron_quant import decode_forecast
from minitron_quant.decode_forecast import attention_operations, decode_seconds
from minitron_quant.model_files import open_model_files

ATTENTION = 3 * HIDDEN**2  # q, k and v of half the width, output
FEED_FORWARD = 3 * HIDDEN * FFN


@pytest.fixture(autouse=True)
def _one_operation_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_forecast, "llama_cpp_operations_per_second", lambda: 1.0)


def test_decode_seconds_counts_output_rows_of_the_tokens_with_logits(tmp_path: Path) -> None:
    shards = open_model_files(write_tiny(tmp_path / "dense.gguf"))
    layers, output = LAYERS * (ATTENTION + FEED_FORWARD), VOCABULARY * HIDDEN
    attention = 4 * 64 * LAYERS * HIDDEN
    assert attention_operations(shards, 64) == attention
    alone = decode_seconds(shards, 10, 0, n_ctx=64, threads=1)
    assert alone == pytest.approx(10 * (2 * layers + attention))
    halved = decode_seconds(shards, 10, 0.5, n_ctx=64, threads=2)
    assert halved == pytest.approx(alone / 2 + 10 * output / 2)


def test_decode_seconds_counts_the_experts_in_use(tmp_path: Path) -> None:
    shards = open_model_files(write_tiny(tmp_path / "experts.gguf", experts=4))
    layer = ATTENTION + 4 * HIDDEN + 2 * FEED_FORWARD  # the router, and two of four experts
    attention = attention_operations(shards, 512)
    assert decode_seconds(shards, 1, 0, threads=1) == pytest.approx(2 * LAYERS * layer + attention)


def test_speed_is_numpys_where_ggml_hides_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert decode_forecast.llama_cpp_operations_per_second() > 1e8
    monkeypatch.setattr(product_speed, "cpu_library", lambda: None)
    monkeypatch.setattr(decode_forecast, "blas_operations_per_second", lambda: 1e12)
    assert decode_forecast.llama_cpp_operations_per_second() == 6e11

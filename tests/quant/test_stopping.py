"""Work that stops between types, rows and nodes of a graph once a stop is requested."""

from collections.abc import Iterator
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.support import EXAMPLES
from minitron_core import stop
from minitron_core.gguf import F32, TYPE_ID, TensorInfo
from minitron_core.hashing import file_sha256
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.blocks import encode_blocks
from minitron_quant.chunking import ChunkSettings
from minitron_quant.imatrix.accumulator import Accumulator
from minitron_quant.imatrix.collect import CollectSettings, collect
from minitron_quant.kernels import self_check
from minitron_quant.quantize import encode
from minitron_quant.quantize.encode import EncodeTask

TYPES = tuple(TYPE_ID[name] for name in ("q4_0", "q5_0", "q8_0"))


@pytest.fixture(autouse=True)
def no_request() -> Iterator[None]:
    yield
    stop.clear()


def task(rows: int) -> EncodeTask:
    values = np.random.default_rng(1).normal(size=(rows, 1024)).astype(np.float32)
    info = TensorInfo("t", (1024, rows), F32, 0, values.nbytes)
    return EncodeTask(info, values.view(np.uint8).reshape(-1), TYPES, None)


def test_encode_stops_between_rows_and_types(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(ggml_type: int, *more: Any) -> Any:
        calls.append(ggml_type)
        stop.request()
        return encode_blocks(ggml_type, *more)

    monkeypatch.setattr(encode, "encode_blocks", counted)
    with pytest.raises(KeyboardInterrupt):
        list(encode.encode([task(256)], threads=1))
    assert calls == [TYPES[0]], "of twelve calls"


def test_encode_in_pieces_gives_the_bytes_of_whole_rows() -> None:
    whole = task(200)
    (slab,) = encode.encode([whole], threads=1)
    values = np.asarray(whole.data).view(np.float32).reshape(200, 1024)
    for ggml_type in TYPES:
        assert np.array_equal(slab.blocks[ggml_type], encode_blocks(ggml_type, values))


def test_encode_by_ggml_stops_while_tables_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook, plain = TYPE_ID["iq3_s"], TYPE_ID["q4_0"]
    values, built = np.ones((1, 256), np.float32), Event()
    encoded: list[int] = []
    library = SimpleNamespace(
        ggml_quantize_init=lambda _: built.wait(60),
        ggml_quantize_chunk=lambda ggml_type, *_: encoded.append(ggml_type),
    )
    monkeypatch.setattr(self_check, "ggml", lambda: library)
    monkeypatch.setattr(self_check, "_built", set())
    stop.request()
    for ggml_type in (codebook, plain):  # ggml has one lock for all types
        with pytest.raises(KeyboardInterrupt):
            self_check.by_ggml(ggml_type, values, None)
    stop.clear()
    built.set()
    for ggml_type in (codebook, plain):
        self_check.by_ggml(ggml_type, values, None)
    assert encoded == [codebook, plain]


@pytest.mark.parametrize("threads", [1, 2], ids=["one context", "two contexts"])
def test_collect_stops_inside_a_decode(
    threads: int, short_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[int] = []
    add = Accumulator.add_rows

    def counted(accumulator: Accumulator, *rows: Any) -> None:
        added.append(len(added))
        stop.request()
        add(accumulator, *rows)

    monkeypatch.setattr(Accumulator, "add_rows", counted)
    chunks = ChunkSettings(n_ctx=64, n_batch=128, limit=8, threads=threads)
    settings = CollectSettings((EXAMPLES / "calibration.txt",), chunks)
    with open_model(ModelSettings(short_llama)) as model, pytest.raises(KeyboardInterrupt):
        collect(model, settings)
    # the rows of one product: halves of a group, for each context
    assert len(added) <= 4


def test_file_sha256_stops(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"minitron")
    stop.request()
    with pytest.raises(KeyboardInterrupt):
        file_sha256(path)

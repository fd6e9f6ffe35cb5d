"""Importance matrices: equal to llama-imatrix's to the byte."""

import hashlib
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from helpers.instruction_sets import INSTRUCTION_SET, recorded
from helpers.support import EXAMPLES, RECORDED, quantize
from minitron_core.errors import Usage
from minitron_core.gguf import open_gguf
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_text, read_text
from minitron_quant.imatrix.accumulator import Accumulator
from minitron_quant.imatrix.collect import CollectSettings, collect
from minitron_quant.imatrix.collector import Collector
from minitron_quant.imatrix.files import read_imatrix, write_imatrix
from minitron_quant.imatrix.matrix import ImportanceMatrix
from minitron_quant.levels import parse_levels
from minitron_quant.provenance import CalibrationOrigin, calibration_origin
from minitron_quant.quantize.prepare import QuantizeSettings, prepare

CALIBRATION = EXAMPLES / "calibration.txt"


def collected(path: Path, settings: CollectSettings) -> ImportanceMatrix:
    with open_model(ModelSettings(path)) as model:
        return collect(model, settings)


@pytest.fixture(scope="module")
def llama_matrix(nano_llama: Path) -> ImportanceMatrix:
    return collected(nano_llama, CollectSettings((CALIBRATION,), ChunkSettings(limit=10)))


@pytest.fixture(scope="module")
def nemotron_matrix(nano_nemotron: Path) -> ImportanceMatrix:
    return collected(nano_nemotron, CollectSettings((CALIBRATION,), ChunkSettings(limit=10)))


def near(ours: ImportanceMatrix, theirs: ImportanceMatrix) -> None:
    """The same counts, and sums as other kernels round them: one token more would be 2e-4."""
    assert ours.entries.keys() == theirs.entries.keys()
    assert ours.chunk_count == theirs.chunk_count and ours.chunk_size == theirs.chunk_size
    for weight, entry in theirs.entries.items():
        np.testing.assert_array_equal(ours.entries[weight].counts, entry.counts)
        share = abs(ours.entries[weight].sums / entry.sums - 1)
        # AVX2 beside AVX-512: 5e-5 and 3e-4
        assert share.mean() < 1e-4 and share.max() < 2e-3


def same_file(matrix: ImportanceMatrix, name: str, file: str, path: Path) -> None:
    """The recorded bytes; and sums near those collected with AVX-512, whatever the kernels."""
    matrix.datasets = [CALIBRATION.name]
    write_imatrix(path, matrix, path.suffix[1:])
    if INSTRUCTION_SET:
        expected = recorded("imatrix.json")["models"][name]["files"][file]["sha256"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == expected
    # a .dat file has no chunk size and counts calls, so compare what was collected
    near(matrix, read_imatrix((RECORDED / file).with_suffix(".gguf")))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("nano-llama", "nano-llama-10.imatrix.gguf"),
        ("nano-llama", "nano-llama-10.imatrix.dat"),
        ("nano-nemotron", "nano-nemotron-10.imatrix.gguf"),
    ],
)
def test_write_imatrix_equals_llama_imatrix_to_the_byte(
    name: str,
    file: str,
    llama_matrix: ImportanceMatrix,
    nemotron_matrix: ImportanceMatrix,
    tmp_path: Path,
) -> None:
    matrix = llama_matrix if name == "nano-llama" else nemotron_matrix
    same_file(matrix.plain(), name, file, tmp_path / file)


@pytest.mark.harden
@pytest.mark.parametrize("name", ["nano-llama", "nano-nemotron"])
def test_the_whole_text_equals_llama_imatrix(
    name: str, nano_llama: Path, nano_nemotron: Path, tmp_path: Path
) -> None:
    file = f"{name}.imatrix.gguf"
    path = nano_llama if name == "nano-llama" else nano_nemotron
    matrix = collected(path, CollectSettings((CALIBRATION,))).plain()
    same_file(matrix, name, file, tmp_path / file)


def test_collect_gives_the_means_of_the_inputs(
    nano_llama: Path, llama_matrix: ImportanceMatrix
) -> None:
    for name, entry in llama_matrix.entries.items():
        mean = entry.mean()
        assert mean is not None and mean.shape == entry.sums.shape
        # |E[x]|² ≤ E[x²], and the products that share an input share its mean
        assert (mean**2 <= entry.sums / entry.counts[:, None] * (1 + 1e-6)).all()
        if name.endswith(("attn_k.weight", "attn_v.weight")):
            query = name.replace("attn_k", "attn_q").replace("attn_v", "attn_q")
            np.testing.assert_array_equal(mean, llama_matrix.entries[query].mean())


def test_collect_gives_the_known_mean_of_the_first_input(nano_llama: Path) -> None:
    # attention sees the normalized embedding: x · norm / sqrt(E[x²] + ε)
    file = open_gguf(nano_llama)
    tensors = {info.name: info for info in file.tensors}
    norm = file.data(tensors["blk.0.attn_norm.weight"]).view(np.float32)
    embedding = file.data(tensors["token_embd.weight"]).view(np.float16).astype(np.float64)
    rows = embedding.reshape(-1, len(norm))
    squares = (rows * rows).mean(axis=1) + file.get("llama.attention.layer_norm_rms_epsilon")
    rows *= norm / np.sqrt(squares)[:, None]
    settings = ChunkSettings(n_ctx=128, limit=4)
    with open_model(ModelSettings(nano_llama)) as model:
        matrix = collect(model, CollectSettings((CALIBRATION,), settings))
        chunks = chunk_text(model, read_text(CALIBRATION), settings, "").copy()
        chunks[:, 0] = model.bos
    mean = matrix.entries["blk.0.attn_q.weight"].mean()
    assert mean is not None
    np.testing.assert_allclose(mean[0], rows[chunks.ravel()].mean(axis=0), atol=1e-6)


def test_write_imatrix_keeps_what_llama_cpp_reads_with_means_and_without(
    llama_matrix: ImportanceMatrix, tmp_path: Path
) -> None:
    full, plain = tmp_path / "full.gguf", tmp_path / "plain.gguf"
    write_imatrix(full, llama_matrix)
    write_imatrix(plain, llama_matrix.plain())
    found = open_gguf(full), open_gguf(plain)
    # what common_imatrix_load looks at: tensors ending in these, and the imatrix.* keys
    seen = [
        {
            info.name: file.data(info).tobytes()
            for info in file.tensors
            if info.name.endswith((".in_sum2", ".counts"))
        }
        for file in found
    ]
    assert seen[0] == seen[1]
    for key in ("general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"):
        assert found[0].get(key) == found[1].get(key)


def test_collect_plain_gives_the_same_sums(nano_llama: Path) -> None:
    chunks = ChunkSettings(n_ctx=128, limit=3)
    full = collected(nano_llama, CollectSettings((CALIBRATION,), chunks))
    plain = collected(nano_llama, CollectSettings((CALIBRATION,), chunks, plain=True))
    assert plain.origin is None
    assert full.entries.keys() == plain.entries.keys()
    for name, entry in plain.entries.items():
        assert entry.totals is None and entry.mean() is None
        np.testing.assert_array_equal(entry.sums, full.entries[name].sums)


def test_calibration_origin_is_the_same_for_every_level_of_a_model(
    nano_llama: Path, nano_nemotron: Path, tmp_path: Path
) -> None:
    origin = calibration_origin(nano_llama, [CALIBRATION])
    level = quantize(nano_llama, tmp_path, "Q4_0")["Q4_0"]
    assert origin == calibration_origin(level.path, [CALIBRATION])
    assert origin.model != calibration_origin(nano_nemotron, []).model
    assert origin.texts == (hashlib.sha256(CALIBRATION.read_bytes()).hexdigest(),)


@given(
    rows=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 40), st.integers(2, 8)),
        elements=st.floats(-1e3, 1e3, width=32),
    )
)
def test_accumulator_sums_in_both_precisions(rows: np.ndarray) -> None:
    exact = np.array([math.fsum(float(x) ** 2 for x in column) for column in rows.T])
    single, double = Accumulator("float32", means=True), Accumulator("float64", means=True)
    ours = single.entry(1, rows.shape[1], 1), double.entry(1, rows.shape[1], 1)
    for start in range(0, len(rows), 16):
        single.add_rows(ours[0], 0, rows[start : start + 16])
        double.add_rows(ours[1], 0, rows[start : start + 16])
    drifting = np.zeros(rows.shape[1], np.float32)
    for row in rows:
        drifting += row * row
    np.testing.assert_array_equal(ours[0].sums[0], drifting)
    np.testing.assert_allclose(ours[1].sums[0], exact, rtol=1e-14)
    # totals of a batch are float32: right up to the sizes that were added
    error = 1e-5 * float(np.abs(rows).sum())
    np.testing.assert_allclose(ours[0].totals[0], rows.sum(axis=0, dtype=np.float64), atol=error)


def test_collect_float64_sums_are_close_to_float32_sums(nano_llama: Path) -> None:
    chunks = ChunkSettings(n_ctx=128, limit=3)
    single = collected(nano_llama, CollectSettings((CALIBRATION,), chunks))
    double = collected(nano_llama, CollectSettings((CALIBRATION,), chunks, sums="float64"))
    for name, entry in double.entries.items():
        assert entry.sums.dtype == np.float64
        np.testing.assert_allclose(single.entries[name].sums, entry.sums, rtol=1e-5)


def test_prepare_notes_a_matrix_of_another_model(
    nano_llama: Path, llama_matrix: ImportanceMatrix, tmp_path: Path
) -> None:
    notes = []
    for origin in (llama_matrix.origin, CalibrationOrigin("another", ())):
        path = tmp_path / "m.gguf"
        write_imatrix(path, replace(llama_matrix, origin=origin))
        levels = tuple(parse_levels(["Q4_0"]))
        notes.append(prepare(QuantizeSettings(nano_llama, levels, tmp_path, imatrix=path)).notes)
    assert notes == [(), ("the importance matrix was made on another model than this one",)]


def test_collect_output_weight_only_on_request(nano_llama: Path) -> None:
    chunks = ChunkSettings(n_ctx=128, limit=3)
    plain = collected(nano_llama, CollectSettings((CALIBRATION,), chunks))
    settings = CollectSettings((CALIBRATION,), chunks, process_output=True)
    full = collected(nano_llama, settings)
    assert set(full.entries) - set(plain.entries) == {"output.weight"}
    for name, entry in plain.entries.items():
        np.testing.assert_array_equal(entry.sums, full.entries[name].sums)
    # with the logits wanted the vocabulary matrix is computed, else only its input
    whole = replace(settings, perplexity=True)
    sums = collected(nano_llama, whole).entries["output.weight"].sums
    np.testing.assert_array_equal(full.entries["output.weight"].sums, sums)


def test_collect_adds_up_texts_within_one_limit(nano_llama: Path) -> None:
    chunks = ChunkSettings(n_ctx=128, n_batch=128, limit=5)
    texts = (CALIBRATION, EXAMPLES / "held-out.txt")
    matrix = collected(nano_llama, CollectSettings(texts, chunks))
    assert matrix.chunk_count == 5
    assert len(matrix.datasets) == 2


def test_collect_refuses_a_text_that_is_too_short(nano_llama: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Too short to say anything.")
    with pytest.raises(Usage, match=r"short.txt has \d+ tokens"):
        collected(nano_llama, CollectSettings((short,)))


def test_collector_raises_the_error_of_a_callback() -> None:
    collector = Collector(Accumulator("float32", means=True), {})
    assert collector.hook(0, True, None) is False  # no tensor is there
    with pytest.raises(TypeError, match="unsupported operand"):
        collector.check()


@pytest.mark.parametrize(("number", "seconds"), [("INT", 0.5), ("TERM", 0.8), ("INT", 1.1)])
def test_collect_ends_at_a_signal(
    number: str, seconds: float, nano_llama: Path, tmp_path: Path
) -> None:
    target = tmp_path / "m.gguf"
    command = [sys.executable, "-m", "minitron_cli", "imatrix", nano_llama, "-f", CALIBRATION]
    process = subprocess.Popen(
        [*command, "--threads", "2", "-o", target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    sent = signal.Signals[f"SIG{number}"]
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    # on a busy machine the signal may come before our first line: then it is Python that ends
    assert process.returncode in (130, -sent)
    assert out == "" and "Exception ignored" not in err
    assert list(tmp_path.iterdir()) == []

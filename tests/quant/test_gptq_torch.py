"""torch in numpy's place: the same sums and the same codes, within rounding."""

import numpy as np
import pytest

from minitron_core.gguf import TYPE_ID
from minitron_quant.array_backend import NUMPY, Arrays, best_arrays, torch_arrays
from minitron_quant.blocks import decode_blocks, encode_blocks
from minitron_quant.covariance.gram import GramSums
from minitron_quant.gptq.cholesky import error_of, factor_block
from minitron_quant.gptq.codebook_types import CODEBOOKS
from minitron_quant.gptq.encode_rows import encode_rows
from minitron_quant.gptq.scalar_layouts import LAYOUTS

ROWS, COLUMNS = 16, 512


@pytest.fixture(scope="module")
def torch_on_cpu() -> Arrays:
    """The device of torch that every machine has."""
    pytest.importorskip("torch", reason="torch is not installed: pip install minitron[gpu]")
    return torch_arrays("cpu")


def test_gram_sums_with_torch_equal_numpy(torch_on_cpu: Arrays) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 96), np.float32)
    found = []
    for arrays in (NUMPY, torch_on_cpu):
        sums = GramSums({"x": [(0, 32), (32, 96)]}, arrays)
        sums.add("x", rows)
        sums.add("x", rows[:7])
        found.append([total.copy() for total in sums.take()])
        sums.close()
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("name", [*LAYOUTS, *CODEBOOKS])
def test_encode_rows_with_torch_equals_numpy(name: str, sweeps: int, torch_on_cpu: Arrays) -> None:
    random, kind = np.random.default_rng(1), TYPE_ID[name]
    inputs = random.standard_normal((64, COLUMNS)) * (1 + 9 * (random.random(COLUMNS) > 0.95))
    covariance = inputs.T @ inputs / 64
    blocks = [factor_block(k, covariance[k : k + 256, k : k + 256], 0.02) for k in (0, 256)]
    weights = random.standard_normal((ROWS, COLUMNS), np.float32) / 20
    before = encode_blocks(kind, weights, covariance.diagonal().astype(np.float32))
    left = [
        decode_blocks(
            kind, encode_rows(kind, weights, before, blocks, arrays, sweeps), weights.shape
        )
        - weights
        for arrays in (NUMPY, torch_on_cpu)
    ]
    # a code on the border of two may fall to either side, and what follows pays it back
    assert (left[0] != left[1]).mean() < (0.1 if sweeps else 0.02)
    sums = [error_of(errors, blocks).sum() for errors in left]
    assert sums[0] == pytest.approx(sums[1], rel=1e-2)


def test_best_arrays_without_a_gpu_is_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert best_arrays.__wrapped__() is NUMPY

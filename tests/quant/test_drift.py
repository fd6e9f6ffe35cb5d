"""Drift: the targets that repair it, and the ridge of their equations."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from minitron_core.gguf import F32, GgufWriter, TensorSpec, open_gguf
from minitron_quant.array_backend import Floats
from minitron_quant.gptq.cholesky import solve_positive
from minitron_quant.gptq.drift import (
    RIDGES,
    Drift,
    DriftSettings,
    DriftSums,
    choose_ridge,
    solve,
    token_scale,
)
from minitron_quant.gptq.targets import Weight, targets_of

POOL = ThreadPoolExecutor(2)


def random_sums(
    weight: Floats | None = None, noise: float = 0.0, share: float = 1.0
) -> tuple[DriftSums, list[Floats]]:
    """Sums over 400 tokens, and inputs and states; weight: whose product is added to the states.

    share: of the drift, to repair.
    """
    random = np.random.default_rng(3)
    full = random.standard_normal((400, 8)).astype(np.float32)
    ours = full + 0.3 * random.standard_normal((400, 8)).astype(np.float32)
    rows = 0 if weight is None else len(weight)
    states = random.standard_normal((400, rows)).astype(np.float32)
    full += noise * random.standard_normal((400, 8)).astype(np.float32)
    sums = DriftSums(8, rows)
    for half, part in enumerate((slice(0, 150), slice(150, 400))):
        inputs = np.float32(share) * (full[part] - ours[part])
        drift = Drift(inputs, weight, None if weight is None else np.float32(share) * states[part])
        for addition in sums.additions(half, drift, ours[part]):
            addition()
    return sums, [full, ours, states]


def weight_of(values: Floats, folder: Path) -> Weight:
    """A weight as a file holds it."""
    path = folder / "weight.gguf"
    with GgufWriter(path, [], [TensorSpec("w", values.shape[::-1], F32)]) as writer:
        writer.write(values)
    file = open_gguf(path)
    return Weight(file, file.tensor("w"))


def whole(weight: Weight) -> Floats:
    rows, columns = weight.info.rows, weight.info.shape[0]
    return weight[0 : 4 * rows * columns].view(np.float32).reshape(rows, columns)


@pytest.mark.parametrize("rows", [5, 20])  # fewer and more than columns
def test_target_is_the_least_squares_solution(rows: int, tmp_path: Path) -> None:
    values = np.random.default_rng(4).standard_normal((rows, 8)).astype(np.float32)
    sums, (full, ours, states) = random_sums(values)
    np.testing.assert_allclose(sums.metric(), ours.T @ ours / 400, rtol=1e-3)
    best = np.linalg.lstsq(ours, full @ values.T + states, rcond=None)[0].T
    (target,) = targets_of([weight_of(values, tmp_path)], sums, 0, POOL)
    np.testing.assert_allclose(whole(target), best, atol=1e-4)
    np.testing.assert_array_equal(target.sample()[0], whole(target))
    np.testing.assert_array_equal(target[32:96], whole(target)[1:3].reshape(-1).view(np.uint8))
    half, _ = random_sums(values, share=0.5)
    (target,) = targets_of([weight_of(values, tmp_path)], half, 0, POOL)
    np.testing.assert_allclose(whole(target), (values + best) / 2, atol=1e-4)


def test_target_counts_a_token_less_the_larger_its_states_become(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    full, ours, states, after = random.standard_normal((4, 200, 8)).astype(np.float32)
    for each in (full, ours, states, after):
        each[0] *= 1000  # a text's first token in many models
    after[1] = 0
    scale = token_scale(after)
    np.testing.assert_allclose(scale[2:] ** -2, (after[2:] ** 2).mean(axis=1), rtol=1e-5)
    assert scale[1] == 0
    values = random.standard_normal((8, 8)).astype(np.float32)
    sums = DriftSums(8, 8)
    for addition in sums.additions(0, Drift(full - ours, values, states), ours, scale):
        addition()
    rows = scale[:, None]
    expected = (rows * ours).T @ (rows * ours) / (scale @ scale)
    np.testing.assert_allclose(sums.metric(), expected, rtol=1e-3, atol=1e-5)
    best = np.linalg.lstsq(rows * ours, rows * (full @ values.T + states), rcond=None)[0].T
    (target,) = targets_of([weight_of(values, tmp_path)], sums, 0, POOL)
    np.testing.assert_allclose(whole(target), best, atol=1e-3)


def test_targets_of_weights_that_share_an_input_are_those_of_each(tmp_path: Path) -> None:
    sums, _ = random_sums()
    random = np.random.default_rng(4)
    first = weight_of(random.standard_normal((4, 8)).astype(np.float32), tmp_path)
    both = targets_of([first, first], sums, 0.1, POOL)
    (alone,) = targets_of([first], sums, 0.1, POOL)
    for each in both:
        np.testing.assert_allclose(whole(each), whole(alone), atol=1e-5)


def test_target_without_drift_is_the_weight(tmp_path: Path) -> None:
    sums, _ = random_sums(share=0)
    weight = weight_of(np.eye(8, dtype=np.float32), tmp_path)
    (target,) = targets_of([weight], sums, 0.1, POOL)
    np.testing.assert_array_equal(whole(target), np.eye(8))


def test_solve_positive_is_the_solution_with_any_number_of_threads() -> None:
    random = np.random.default_rng(6)
    inputs, right = random.standard_normal((900, 700)), random.standard_normal((700, 1100))
    metric = (inputs.T @ inputs / 900 + 0.01 * np.eye(700)).astype(np.float32)
    right = right.astype(np.float32)
    found = solve_positive(metric, 0.5, right, POOL)
    damped = metric.astype(np.float64) + 0.5 * np.eye(700)
    np.testing.assert_allclose(found, np.linalg.solve(damped, right), rtol=1e-3, atol=1e-5)
    with ThreadPoolExecutor(1) as alone:
        np.testing.assert_array_equal(found, solve_positive(metric, 0.5, right, alone))


def test_solve_positive_takes_what_is_not_positive_by_rounding() -> None:
    turned, ones = np.diag([2.0, -1.0]).astype(np.float32), np.eye(2, dtype=np.float32)
    np.testing.assert_allclose(solve_positive(turned, 0, ones, POOL), np.diag([0.5, -1.0]))
    # too near to singular for float32
    near = np.full((2, 2), 1, np.float32)
    found = solve_positive(near, 1e-8, ones, POOL)
    np.testing.assert_allclose(found, np.linalg.inv(near + 1e-8 * np.eye(2)), rtol=1e-5)


def test_choose_ridge_is_the_one_of_the_least_error_on_the_second_half() -> None:
    weight = np.random.default_rng(4).standard_normal((5, 8)).astype(np.float32)
    settings, numbers = DriftSettings(), np.arange(5)
    chosen = set()
    for rows, noise in ((0, 0.0), (5, 0.0), (5, 20.0)):
        sums, (full, ours, states) = random_sums(weight if rows else None, noise)
        errors = []
        for ridge in RIDGES:
            wanted = sums.wanted(weight, numbers, POOL, halves=[0])
            fitted = weight + solve(sums.metric([0]), wanted, ridge, POOL)
            left = full[150:] @ weight.T - ours[150:] @ fitted.T
            left += states[150:] if rows else 0
            errors.append(float((left**2).sum(dtype=np.float64)))
        found = choose_ridge(sums, weight, numbers, settings, POOL)
        assert found == RIDGES[int(np.argmin(errors))]
        for start in RIDGES:
            assert choose_ridge(sums, weight, numbers, settings, POOL, start) == found
        chosen.add(found)
    assert len(chosen) > 1
    assert choose_ridge(sums, weight, numbers, DriftSettings(ridge=0.5), POOL) == 0.5
    # nothing to judge a fit on
    one = DriftSums(8)
    for addition in one.additions(0, Drift(full - ours), ours):
        addition()
    assert choose_ridge(one, weight, numbers, settings, POOL) == RIDGES[-1]

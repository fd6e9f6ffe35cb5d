"""The knapsack solver against trying all mixes."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_core.gguf import TYPE, TYPE_ID, tensor_bytes
from minitron_quant.mixed_precision.knapsack import Knapsack, TypeChoice, best_choices

NAMES = ("blk.0.a", "blk.0.b", "blk.1.a", "output.weight", "token_embd.weight")


@st.composite
def problems(draw: st.DrawFn) -> dict[str, list[TypeChoice]]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    unit = draw(st.sampled_from([1, 32, 96]))
    choice = st.tuples(st.integers(0, 40), st.floats(0, 10))
    return {
        name: [
            TypeChoice(number, size * unit, kld_cost)
            for number, (size, kld_cost) in enumerate(
                draw(st.lists(choice, min_size=1, max_size=4))
            )
        ]
        for name in names
    }


def all_mixes(problem: dict[str, list[TypeChoice]]) -> list[tuple[int, float]]:
    return [
        (sum(choice.bytes for choice in chosen), sum(choice.kld_cost for choice in chosen))
        for chosen in product(*problem.values())
    ]


@given(problems(), st.integers(0, 5000))
@settings(max_examples=100)
def test_solve_finds_the_best_mix_that_fits(
    problem: dict[str, list[TypeChoice]], budget: int
) -> None:
    knapsack = Knapsack(problem)
    fitting = [kld_cost for size, kld_cost in all_mixes(problem) if size <= budget]
    if not fitting:
        assert budget < knapsack.smallest
        with pytest.raises(ValueError, match="fewer"):
            knapsack.solve(budget)
        return
    mix = knapsack.solve(budget)
    assert mix.bytes <= budget
    assert mix.kld_cost == pytest.approx(min(fitting), abs=1e-9)
    chosen = {name: problem[name][kind] for name, kind in mix.types.items()}
    assert chosen.keys() == problem.keys()
    assert mix.bytes == sum(choice.bytes for choice in chosen.values())
    assert mix.kld_cost == pytest.approx(sum(choice.kld_cost for choice in chosen.values()))


@given(problems(), st.floats(0, 30))
@settings(max_examples=60)
def test_size_for_is_the_smallest_size_of_a_cost(
    problem: dict[str, list[TypeChoice]], kld_cost: float
) -> None:
    knapsack = Knapsack(problem)
    # sums of the same numbers differ in their last bits with the order: keep away from ties
    mixes = all_mixes(problem)
    if any(abs(have - kld_cost) < 1e-9 for _, have in mixes):
        return
    sizes = [size for size, have in mixes if have <= kld_cost]
    assert knapsack.size_for(kld_cost) == (min(sizes) if sizes else None)


def test_best_choices_leave_out_larger_ones_that_are_no_better() -> None:
    choices = [
        TypeChoice(0, 10, 5.0),
        TypeChoice(1, 20, 5.0),
        TypeChoice(2, 20, 3.0),
        TypeChoice(3, 30, 3.5),
    ]
    assert [choice.type for choice in best_choices(choices)] == [0, 2]


def test_solve_costs_fall_with_the_budget_to_both_ends() -> None:
    random = np.random.default_rng(0)
    problem = {
        f"blk.{n}.w": [TypeChoice(k, 64 * k + 64, float(d)) for k, d in enumerate(random.random(6))]
        for n in range(12)
    }
    knapsack = Knapsack(problem)
    sizes = range(knapsack.smallest, knapsack.largest + 1, 64)
    costs = [knapsack.solve(size).kld_cost for size in sizes]
    assert costs == sorted(costs, reverse=True)
    assert knapsack.solve(knapsack.smallest).bytes == knapsack.smallest
    assert knapsack.solve(knapsack.largest + 10**9).bytes == knapsack.largest


def test_solve_takes_seconds_for_a_model_of_4_billion_weights() -> None:
    shapes = {"attn_q": (3072, 4096), "attn_k": (3072, 1024), "attn_v": (3072, 1024)}
    shapes |= {"attn_output": (4096, 3072), "ffn_up": (3072, 9216), "ffn_down": (9216, 3072)}
    tensors = {f"blk.{n}.{role}": shape for n in range(32) for role, shape in shapes.items()}
    tensors |= {"output.weight": (3072, 256000), "token_embd.weight": (3072, 256000)}
    kinds = [TYPE_ID[name] for name in ("iq1_s", "iq2_xxs", "iq2_s", "q2_K", "iq3_xxs", "iq3_s")]
    kinds += [TYPE_ID[name] for name in ("iq4_xs", "q4_K", "q5_K", "q6_K", "q8_0", "f16")]
    random = np.random.default_rng(1)

    def kld_cost(kind: int) -> float:
        bits = 8 * TYPE[kind].block_bytes / TYPE[kind].block_elements
        return float(random.uniform(0.5, 2) * 4.0**-bits)

    problem = {
        name: [TypeChoice(kind, tensor_bytes(kind, shape), kld_cost(kind)) for kind in kinds]
        for name, shape in tensors.items()
    }
    knapsack = Knapsack(problem)
    budget = 1_500_000_000
    mix = knapsack.solve(budget)
    # exact: what is left is less than the finest step between two types
    assert 0 <= budget - mix.bytes < 1_000_000
    assert knapsack.solve(mix.bytes).types == mix.types

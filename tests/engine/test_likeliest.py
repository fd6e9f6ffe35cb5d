"""The likeliest token: one call, the same answer as numpy's, and the chain's token in any case."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.kernels import built_library
from minitron_core.kernels import Kernels
from minitron_engine.generation import likeliest
from minitron_engine.generation.likeliest import NOT_A_NUMBER, TIED, Likeliest
from minitron_engine.generation.sampler import open_sampler
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.sequence import Sequence
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

_LOGITS_OF = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)


def found(logits: NDArray[np.float32], level: int) -> int:
    """What is found in the logits, with the library's instruction set, or 0 for numpy."""
    built = built_library()
    context: Any = SimpleNamespace(
        handle=None, output_logits=lambda _: logits, model=SimpleNamespace(n_vocab=len(logits))
    )
    logits_of = _LOGITS_OF(lambda *_: logits.ctypes.data)
    finder = Likeliest()
    finder._logits_of = ctypes.cast(logits_of, ctypes.c_void_p)
    finder._level = level
    finder._find = cast("Any", built.library).kernels_likeliest if level else None
    return finder.of(cast("Context", context))


@given(
    st.lists(
        st.sampled_from([-np.inf, -1e30, -1.0, 0.0, 0.25, 1.0, np.inf, np.nan])
        | st.floats(-50, 50, width=32),
        min_size=1,
        max_size=70,
    )
)
def test_likeliest_is_the_only_largest_logit(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    largest = np.flatnonzero(logits == logits.max())
    wanted = int(largest[0]) if len(largest) == 1 else TIED
    if np.isnan(logits).any():
        wanted = NOT_A_NUMBER
    for level in range(built_library().level + 1):
        # logits that are all next to nothing may count as tied: the chain decides
        assert found(logits, level) in {wanted, TIED if logits.max() <= -1e30 else wanted}


@pytest.fixture(scope="module")
def context(nano_llama: Path) -> Iterator[Context]:
    with (
        open_model(ModelSettings(nano_llama, n_ctx=128)) as model,
        open_context(model, ContextSettings(128, 64)) as opened,
    ):
        yield opened


@pytest.mark.parametrize("answer", ["likeliest", "tied", "forbidden"])
def test_greedy_tokens_are_those_of_the_chain(
    answer: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the chain is asked or not: nothing else changes a greedy answer."""
    Sequence(context).append([1, 305, 281])
    settings = SamplingSettings(seed=1, temperature=0.0)
    with open_sampler(context.model, settings) as sampler:
        chain = sampler.choose(context, -1)
        asked = 0

        def choose(*_: Any) -> int | None:
            nonlocal asked
            asked += 1
            return chain

        monkeypatch.setattr(sampler, "choose", choose)
        if answer == "tied":
            monkeypatch.setattr(sampler._likeliest, "of", lambda *_: TIED)
        if answer == "forbidden":
            monkeypatch.setattr(sampler, "_likeliest_but", {chain})
        assert sampler.sample(context) == chain
        assert asked == (answer != "likeliest")


@pytest.mark.parametrize(
    ("settings", "takes"),
    [
        ({"temperature": 0.0}, True),
        ({"temperature": 0.0, "ignore_eos": True}, True),
        ({"top_k": 1}, True),
        ({"temperature": 0.0, "repeat_penalty": 1.1}, False),
        ({"temperature": 0.0, "logit_bias": ((3, 2.0),)}, False),
        ({"temperature": 0.0, "dynatemp_range": 0.5}, False),
        ({}, False),
    ],
)
def test_settings_that_take_the_likeliest(settings: dict[str, Any], takes: bool) -> None:
    assert SamplingSettings(seed=1, **settings).takes_likeliest is takes


def test_without_a_library_numpy_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeliest, "kernels", lambda: Kernels(None, 0, "none"))
    assert Likeliest()._find is None

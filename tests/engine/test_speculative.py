"""Guessing ahead changes nothing but the time."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.support import quantize
from minitron_core.errors import Unsupported
from minitron_engine.generation.generate import generate, prompt_tokens
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.sequence import Sequence, common_prefix
from minitron_engine.generation.speculative import (
    Drafter,
    DraftModel,
    PromptLookup,
    Speculation,
)
from minitron_engine.generation.steps import Generation, GenerationSettings, collect
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

GREEDY = SamplingSettings(seed=0, temperature=0.0)
PROMPTS = ("The old house stood", "She had never", "one two three one two three one", "")
Open = Callable[..., Context]


@pytest.fixture(scope="module")
def opened() -> Iterator[Open]:
    """Opens models and contexts until the module's end."""
    with ExitStack() as stack:

        def context(path: Path, n_ctx: int = 512) -> Context:
            model = stack.enter_context(open_model(ModelSettings(path)))
            return stack.enter_context(open_context(model, ContextSettings(n_ctx, 512)))

        yield context


def answer(
    context: Context, prompt: str, drafter: Drafter | None = None, **more: Any
) -> Generation:
    tokens = prompt_tokens(context.model, prompt)
    settings = GenerationSettings(**({"sampling": GREEDY, "n_predict": 64} | more))
    return collect(generate(context, tokens, settings, drafter=drafter))


@pytest.mark.parametrize("name", ["nano_llama", "nano_nemotron"])
def test_prompt_lookup_keeps_greedy_answers(
    name: str, opened: Open, request: pytest.FixtureRequest
) -> None:
    context = opened(request.getfixturevalue(name))
    accepted = 0
    for prompt in PROMPTS:
        guessed = answer(context, prompt, PromptLookup())
        assert guessed.tokens == answer(context, prompt).tokens
        assert guessed.timings.accepted is not None
        accepted += guessed.timings.accepted
    assert accepted > 50


def test_draft_model_keeps_greedy_answers(
    nano_llama: Path, nano_nemotron: Path, opened: Open, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("drafts")
    levels = quantize(nano_llama, folder, "Q8_0", "Q4_K_M")
    target, small = opened(levels["Q8_0"].path), opened(levels["Q4_K_M"].path)
    accepted = 0
    for prompt in PROMPTS[:4]:
        drafter = DraftModel(Sequence(small), target.model, 0.3)
        guessed = answer(target, prompt, drafter)
        assert guessed.tokens == answer(target, prompt).tokens
        assert guessed.timings.accepted is not None
        accepted += guessed.timings.accepted
    assert accepted > 10
    other = opened(nano_nemotron).model
    with pytest.raises(Unsupported, match="other tokens"):
        DraftModel(Sequence(small), other, 0.5)


def test_speculation_keeps_limits(nano_llama: Path, opened: Open) -> None:
    context = opened(nano_llama, 256)
    text = "one two three " * 28
    for more in ({"n_predict": -1}, {"n_predict": 3}, {"n_predict": 0}):
        plain, guessed = (
            answer(context, text, **more),
            answer(context, text, PromptLookup(), **more),
        )
        assert (guessed.tokens, guessed.finish_reason) == (plain.tokens, plain.finish_reason)


def test_speculation_is_off_for_greedy_with_penalties(nano_llama: Path, opened: Open) -> None:
    sampling = SamplingSettings(seed=0, temperature=0.0, repeat_penalty=1.2)
    result = answer(opened(nano_llama), "The", PromptLookup(), sampling=sampling, n_predict=4)
    assert result.timings.drafted is None


def test_prompt_lookup_finds_the_latest_longest_match() -> None:
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3, 9, 1, 2, 4, 1, 2], 3) == [4, 1, 2]
    assert lookup.propose([1, 2, 3, 9, 1, 2, 4, 1, 2, 3, 9], 2) == [1, 2]
    # the context was shifted: nothing that is gone may be proposed
    assert lookup.propose([5, 6, 7, 5, 6], 8) == [7, 5, 6]
    assert lookup.propose([1, 2], 4) == []


class Tape:
    """A model as a function of what came before, with the interface of Sequence and Sampler."""

    def __init__(self, salt: int) -> None:
        self.tokens: list[int] = [1]
        self.context = type("Context", (), {"n_ctx": 1000, "handle": 0})()
        self._salt = salt
        self._rows = 1

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, tokens: list[int], *, every: bool = False) -> None:
        self.tokens += tokens
        self._rows = len(tokens) if every else 1

    def forget(self, start: int) -> None:
        del self.tokens[start:]

    def sample(self, _context: Any, row: int = -1) -> int:
        end = len(self.tokens) - (0 if row < 0 else self._rows - 1 - row)
        return hash((self._salt, *self.tokens[:end])) % 3


class Guesses:
    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def propose(self, _tokens: list[int], most: int) -> list[int]:
        taken, self._numbers = self._numbers[:most], self._numbers[most:]
        return taken


@given(salt=st.integers(), guesses=st.lists(st.integers(0, 2), max_size=60), most=st.integers(1, 6))
def test_speculation_gives_the_plain_tokens_for_any_draft(
    salt: int, guesses: list[int], most: int
) -> None:
    plain: Any = Tape(salt)
    expected = [plain.sample(0)]
    while len(expected) < 40:
        plain.append([expected[-1]])
        expected.append(plain.sample(0))
    tape: Any = Tape(salt)
    speculation = Speculation(Guesses(guesses), most)
    found = [tape.sample(0)]
    while len(found) < 40:
        for token in speculation.follow(tape, tape, found[-1], 40 - len(found)):
            found.append(token)
        assert tape.tokens == [1, *found[:-1]]
    assert found == expected
    assert 0 <= speculation.accepted <= speculation.drafted


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix_is_the_longest(first: list[int], second: list[int]) -> None:
    n = common_prefix(first, second)
    assert first[:n] == second[:n]
    assert first[n : n + 1] != second[n : n + 1] or n == min(len(first), len(second))

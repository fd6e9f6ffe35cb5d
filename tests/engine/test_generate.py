"""Generation, against recordings of llama-completion, and what streaming must never do."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import instruction_sets
from minitron_core.errors import Usage
from minitron_engine.generation.generate import generate, prompt_tokens
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.steps import Generation, GenerationSettings, StopBuffer, collect
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

GREEDY = SamplingSettings(seed=0, temperature=0.0)
MODELS = ("nano-llama", "nano-nemotron")


def complete(
    path: Path, prompt: str, settings: GenerationSettings, n_ctx: int = 1024, n_batch: int = 2048
) -> tuple[Generation, list[str]]:
    with (
        open_model(ModelSettings(path)) as model,
        open_context(model, ContextSettings(n_ctx=n_ctx, n_batch=n_batch)) as context,
    ):
        steps = list(generate(context, prompt_tokens(model, prompt), settings))
    return collect(steps), [step.text for step in steps]


@pytest.fixture(scope="module")
def contexts(nano_llama: Path, nano_nemotron: Path) -> Iterator[dict[str, Context]]:
    """Both models loaded once, with the sizes of the recordings."""
    sizes = ContextSettings(n_ctx=1024, n_batch=2048)
    with (
        open_model(ModelSettings(nano_llama)) as llama,
        open_model(ModelSettings(nano_nemotron)) as nemotron,
        open_context(llama, sizes) as first,
        open_context(nemotron, sizes) as second,
    ):
        yield dict(zip(MODELS, (first, second), strict=True))


def settings_of(command: str) -> SamplingSettings:
    words = command.split()
    option = {a: b for a, b in pairwise(words) if a.startswith("--")}
    return SamplingSettings(
        seed=int(option["--seed"]),
        temperature=float(option["--temp"]),
        top_k=int(option["--top-k"]),
        top_p=float(option["--top-p"]),
        min_p=float(option["--min-p"]),
        repeat_penalty=float(option["--repeat-penalty"]),
    )


@pytest.mark.parametrize("sampling", ["greedy", "default", "penalty", "untruncated", "narrow"])
@pytest.mark.parametrize("name", MODELS)
def test_generate_equals_llama_completion(
    name: str, sampling: str, contexts: dict[str, Context]
) -> None:
    context = contexts[name]
    for entry in instruction_sets.recorded("completion.json")["models"][name]["completions"][
        sampling
    ]:
        settings = GenerationSettings(settings_of(entry["command"]), entry["length"])
        instruction_sets.same_answer(
            context, settings, prompt_tokens(context.model, entry["prompt"]), entry
        )


def test_generate_repeats_with_a_seed_and_differs_with_another(nano_llama: Path) -> None:
    def run(seed: int) -> str:
        settings = GenerationSettings(SamplingSettings(seed=seed), 48)
        return complete(nano_llama, "The old house", settings)[0].text

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_generate_ends_before_a_stop_string(nano_llama: Path) -> None:
    settings = GenerationSettings(GREEDY, 64, stop=("door of",))
    result, pieces = complete(nano_llama, "The old house stood", settings)
    assert result.finish_reason == "stop"
    assert result.text == "".join(pieces)
    assert "door of" not in result.text and result.text.endswith("the ")


def test_generate_ends_when_the_context_is_full(nano_llama: Path) -> None:
    result, _ = complete(nano_llama, "The", GenerationSettings(GREEDY, -1), n_ctx=256)
    assert result.finish_reason == "context"
    assert result.timings.prompt_tokens + len(result.tokens) == 256


def test_generate_refuses_a_prompt_longer_than_the_context(nano_llama: Path) -> None:
    with pytest.raises(Usage, match="takes 256"):
        complete(nano_llama, "word " * 400, GenerationSettings(GREEDY, 4), n_ctx=256)


def test_generate_takes_a_prompt_longer_than_a_batch(nano_llama: Path) -> None:
    settings = GenerationSettings(GREEDY, 2)
    result, _ = complete(nano_llama, "word " * 100, settings, n_ctx=256, n_batch=32)
    assert result.timings.prompt_tokens > 3 * 32 and len(result.tokens) == 2


def test_generate_obeys_a_grammar_and_refuses_a_bad_one(nano_llama: Path) -> None:
    sampling = SamplingSettings(seed=3, grammar='root ::= ("yes" | "no") [0-9]')
    result, _ = complete(nano_llama, "Answer:", GenerationSettings(sampling, 16))
    assert result.text.rstrip("0123456789") in ("yes", "no")
    assert result.finish_reason == "end"
    broken = SamplingSettings(seed=3, grammar="root ::= (")
    with pytest.raises(Usage, match="grammar"):
        complete(nano_llama, "Answer:", GenerationSettings(broken, 4))


def test_generate_yields_whole_characters(nano_nemotron: Path) -> None:
    # byte tokens: any character may be spread over tokens
    sampling = SamplingSettings(seed=5, grammar="root ::= [é-ü☃-☾]{6}")
    result, pieces = complete(nano_nemotron, "x", GenerationSettings(sampling, 64))
    assert len(result.text) == 6 and "\ufffd" not in result.text
    assert "".join(pieces) == result.text


@given(
    parts=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=3),
)
def test_stop_buffer_shows_everything_before_the_first_stop(
    parts: list[str], stops: list[str]
) -> None:
    buffer = StopBuffer(tuple(stops))
    shown = ""
    for part in parts:
        shown += buffer.push(part)
        if buffer.stopped:
            break
    shown += buffer.rest()
    text = "".join(parts)
    found = [text.index(stop) for stop in stops if stop in text]
    if not found:
        assert shown == text and not buffer.stopped
    else:
        assert buffer.stopped
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)


def test_generate_yields_frozen_steps_that_add_up(contexts: dict[str, Context]) -> None:
    context = contexts["nano-llama"]
    tokens = prompt_tokens(context.model, "The old house stood")
    steps = list(generate(context, tokens, GenerationSettings(GREEDY, 6)))
    result = collect(steps)
    assert [step.finish_reason for step in steps] == [None] * 5 + ["length"]
    assert [step.timings.tokens for step in steps] == [1, 2, 3, 4, 5, 6]
    assert result.tokens == [step.token for step in steps]
    assert result.text == "".join(step.text for step in steps)
    assert result.timings == steps[-1].timings
    assert result.timings.prompt_seconds > 0 and result.timings.tokens_per_second > 0
    with pytest.raises(AttributeError):
        steps[0].text = ""  # type: ignore[misc]


def test_generate_of_no_tokens_still_gives_the_reason(contexts: dict[str, Context]) -> None:
    context = contexts["nano-llama"]
    tokens = prompt_tokens(context.model, "The")
    (step,) = generate(context, tokens, GenerationSettings(GREEDY, 0))
    assert (step.text, step.token, step.finish_reason) == ("", None, "length")
    assert step.timings.prompt_tokens == len(tokens)


def test_generate_ends_with_interrupted_after_ctrl_c(
    contexts: dict[str, Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = contexts["nano-llama"]
    tokens = prompt_tokens(context.model, "The old house stood")
    steps = generate(context, tokens, GenerationSettings(GREEDY, 64))
    first = next(steps)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(context, "decode_struct", interrupt)
    (last,) = steps
    assert (last.finish_reason, last.token, last.timings) == ("interrupted", None, first.timings)

"""Several answers at once: the same as one by one, and none can spoil another."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.instruction_sets import certain
from minitron_core.errors import Usage
from minitron_engine.generation.generate import prompt_tokens
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.slots import GenerationRequest, Slots
from minitron_engine.generation.steps import GenerationSettings
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.loading import open_model

GREEDY = GenerationSettings(SamplingSettings(seed=0, temperature=0.0), 24)
PROMPTS = ("The old house", "It was", "When the door of the room was opened he", "She", "A dog")


@pytest.fixture(scope="module")
def context(nano_llama: Path) -> Iterator[Context]:
    with (
        open_model(ModelSettings(nano_llama)) as model,
        open_context(model, ContextSettings(n_ctx=3 * 256, n_batch=32, n_seq=3)) as context,
    ):
        yield context


@pytest.fixture
def slots(context: Context) -> Iterator[Slots]:
    context.clear()
    found = Slots(context, 3)
    yield found
    found.close()


def job(context: Context, prompt: str, settings: GenerationSettings = GREEDY) -> GenerationRequest:
    return GenerationRequest(prompt_tokens(context.model, prompt), settings)


def finish(slots: Slots, *jobs: GenerationRequest) -> dict[GenerationRequest, str]:
    told = dict.fromkeys(jobs, "")
    for one in jobs:
        slots.submit(one)
    while not slots.idle:
        for one, step in slots.step():
            told[one] += step.text
    assert all(one.done for one in jobs)
    return told


def test_slots_answer_as_generate_does(context: Context, slots: Slots) -> None:
    """Five prompts on three sequences: no answer is another one than rounding may make of it."""
    jobs = [job(context, prompt) for prompt in PROMPTS]
    told = finish(slots, *jobs)
    expected = [certain(context, one.tokens.tolist(), 24) for one in jobs]
    assert sum(map(len, expected)) > 80
    for one, wanted in zip(jobs, expected, strict=True):
        assert one.result.tokens[: len(wanted)] == wanted
        assert told[one] == one.result.text
        assert (len(one.result.tokens), one.result.finish_reason) == (24, "length")


def test_slots_repeat_with_a_seed_in_the_same_batches(context: Context) -> None:
    def answers(seed: int) -> list[tuple[list[int], str, str]]:
        context.clear()
        settings = GenerationSettings(SamplingSettings(seed=seed), 24, (" the",))
        jobs = [job(context, prompt, settings) for prompt in PROMPTS]
        told = finish(Slots(context, 3), *jobs)
        assert all(told[one] == one.result.text and " the" not in told[one] for one in jobs)
        return [(j.result.tokens, j.result.text, j.result.finish_reason) for j in jobs]

    first = answers(11)
    assert answers(11) == first and answers(12) != first
    assert "stop" in {reason for _, _, reason in first}


def test_slots_reuse_what_is_cached(context: Context, slots: Slots) -> None:
    first, other = job(context, PROMPTS[0]), job(context, PROMPTS[1])
    finish(slots, first, other)
    again = job(context, PROMPTS[0] + first.result.text + " and")
    longer = job(context, PROMPTS[1])
    finish(slots, again, longer)
    assert again.result.timings.reused_tokens >= len(first.tokens) + 12
    assert longer.result.timings.reused_tokens == len(longer.tokens) - 1
    wanted = certain(context, longer.tokens.tolist(), 24)
    assert len(wanted) > 10
    assert longer.result.tokens[: len(wanted)] == wanted == other.result.tokens[: len(wanted)]


def test_slots_fail_one_request_only(context: Context, slots: Slots) -> None:
    broken = GenerationSettings(SamplingSettings(seed=1, grammar="root ::= ("), 8)
    good, bad = job(context, PROMPTS[0]), job(context, PROMPTS[1], broken)
    finish(slots, bad, good)
    assert isinstance(bad.error, Usage) and not bad.result.tokens
    assert good.error is None and len(good.result.tokens) == 24


def test_slots_cancel_a_request(context: Context, slots: Slots) -> None:
    gone = job(context, PROMPTS[0], GenerationSettings(GREEDY.sampling, -1))
    queued = [job(context, prompt) for prompt in PROMPTS[1:]]
    for one in (gone, *queued):
        slots.submit(one)
    slots.step()
    slots.step()
    slots.cancel(gone)
    slots.cancel(queued[-1])
    while not slots.idle:
        slots.step()
    assert gone.done and len(gone.result.tokens) == 2
    assert not queued[-1].result.tokens
    assert all(len(one.result.tokens) == 24 for one in queued[:-1])


def test_slots_limit_the_room_of_a_sequence(context: Context, slots: Slots) -> None:
    with pytest.raises(Usage, match="takes 256"):
        slots.submit(job(context, "word " * 300))
    endless = job(context, "The", GenerationSettings(GREEDY.sampling, -1))
    nothing = job(context, "The", GenerationSettings(GREEDY.sampling, 0))
    finish(slots, endless, nothing)
    assert endless.result.finish_reason == "context"
    assert len(endless.tokens) + len(endless.result.tokens) == 256 + 1
    assert nothing.result.finish_reason == "length" and not nothing.result.tokens

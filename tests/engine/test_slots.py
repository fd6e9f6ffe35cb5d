"""Several answers at once: the same as one by one, and none can spoil another."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.instruction_sets import certain
from minitron_core.errors import Usage
from minitron_engine.generation.generate import prompt_tokens
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.generation.slots import Slots
from minitron_engine.generation.speculative import PromptLookup
from minitron_engine.generation.steps import GenerationSettings
from minitron_engine.llama.batch import Batch
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


def test_slots_with_drafts_answer_as_without(nano_llama: Path, context: Context) -> None:
    """Drafts of all answers go into one decode, and what is not accepted leaves no trace."""
    texts = [prompt + " said that he said that " * 4 for prompt in PROMPTS]
    settings = replace(GREEDY, n_predict=30, draft_max=4)
    drafters = [PromptLookup() for _ in range(3)]
    with open_context(
        context.model, ContextSettings(n_ctx=3 * 256, n_batch=32, n_seq=3, n_outputs=15)
    ) as wide:
        slots = Slots(wide, 3, n_outputs=15, drafters=drafters)
        jobs = [job(context, text, settings) for text in texts]
        told = finish(slots, *jobs)
        slots.close()
    drafted = sum(one.result.timings.drafted or 0 for one in jobs)
    accepted = sum(one.result.timings.accepted or 0 for one in jobs)
    assert 0 < accepted <= drafted
    for one in jobs:
        wanted = certain(context, one.tokens.tolist(), 30)
        assert one.result.tokens[: len(wanted)] == wanted
        assert told[one] == one.result.text and len(one.result.tokens) == 30


def test_slots_give_the_log_probabilities_of_prompt_and_answer(context: Context) -> None:
    """Of every token, in batches that hold a part of the prompt, beside an answer without them."""
    settings = replace(GREEDY, n_predict=3, logprobs=2, prompt_logprobs=True)
    with open_context(
        context.model, ContextSettings(n_ctx=2 * 256, n_batch=32, n_seq=2, n_outputs=7)
    ) as narrow:
        slots = Slots(narrow, 2, n_outputs=7)
        one, other = job(context, "When the door of the room opened", settings), job(context, "It")
        finish(slots, one, other)
        again = job(context, "When the door of the room opened", settings)
        finish(slots, again)  # although its prompt is in the cache
    assert not other.result.logprobs and not other.result.prompt_logprobs
    tokens = np.array([*one.tokens, *one.result.tokens], np.int32)
    found = [*one.result.prompt_logprobs, *one.result.logprobs]
    assert [each.token for each in found] == tokens[1:].tolist()
    assert len(again.result.prompt_logprobs) == len(one.tokens) - 1
    with open_context(context.model, ContextSettings(n_ctx=256, n_batch=64)) as alone:
        batch = Batch(64)
        batch.add(tokens, 0, 0, np.ones(len(tokens), np.bool_))
        alone.decode(batch)
        logits = alone.logits(len(tokens)).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for row, each in enumerate(found):
        assert each.logprob == pytest.approx(log_p[row][each.token], abs=0.02)
        best = np.sort(log_p[row])[::-1][:2]
        np.testing.assert_allclose([value for _, value in each.top], best, atol=0.02)
    for each in one.result.logprobs:  # the greedy choice is the likeliest
        assert each.top[0] == (each.token, each.logprob)

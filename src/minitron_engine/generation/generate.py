"""Generate text: a prompt in, one step for each token out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from minitron_core.errors import Usage
from minitron_engine.generation.sampler import Sampler, open_sampler
from minitron_engine.generation.sequence import Sequence, common_prefix
from minitron_engine.generation.steps import (
    GenerationSettings,
    GenerationStep,
    StepBuilder,
    Timings,
)
from minitron_engine.llama.context import Context
from minitron_engine.llama.model import Model

if TYPE_CHECKING:
    from minitron_engine.generation.speculative import Drafter, Speculation
    from minitron_engine.llama.tokenization import Tokens


def prompt_ids(model: Model, prompt: str) -> list[int]:
    """Token ids of a prompt, with BOS where the model wants one.

    Raises Usage for an empty prompt where the model has no BOS.
    """
    ids: list[int] = model.token_ids(prompt, add_special=True, parse_special=True).tolist()
    if ids:
        return ids
    if model.bos < 0:
        raise Usage("the prompt is empty and the model has no token to begin with", "give a prompt")
    return [model.bos]


def prompt_tokens(model: Model, prompt: str) -> Tokens:
    """As `prompt_ids`, as an array."""
    import numpy as np

    return np.array(prompt_ids(model, prompt), dtype=np.int32)


def check_room(prompt: int, n_ctx: int) -> None:
    """Raise Usage where a prompt of so many tokens leaves no room for an answer."""
    if prompt >= n_ctx:
        raise Usage(
            f"the prompt has {prompt} tokens, and the context takes {n_ctx}",
            f"raise --ctx above {prompt}, or shorten the prompt",
        )


def generate(
    context: Context,
    tokens: Iterable[int],
    settings: GenerationSettings,
    *,
    sequence: Sequence | None = None,
    drafter: Drafter | None = None,
) -> Iterator[GenerationStep]:
    """Decode a prompt and yield a step for each token of the answer; the last has the reason.

    sequence: one that may hold the beginning of the prompt already; at the end it holds everything.
    drafter: proposes tokens that the model checks several at a time.
    Ctrl-C while a step is computed ends the answer with the reason `interrupted`.
    Raises Usage where the prompt is longer than the context, and as open_sampler does.
    """
    prompt = [int(token) for token in tokens]
    check_room(len(prompt), context.n_ctx)
    sequence = Sequence(context) if sequence is None else sequence
    timings = Timings(len(prompt))
    try:
        for step in _steps(sequence, prompt, settings, drafter):
            timings = step.timings
            yield step
    except KeyboardInterrupt:
        yield GenerationStep("", None, "interrupted", timings)


def _steps(
    sequence: Sequence, prompt: list[int], settings: GenerationSettings, drafter: Drafter | None
) -> Iterator[GenerationStep]:
    model = sequence.context.model
    with open_sampler(model, settings.sampling) as sampler:
        sampler.accept_prompt(prompt)
        known = common_prefix(sequence.tokens, prompt) if sequence.tokens else 0
        reused = min(known, len(prompt) - 1)
        builder = StepBuilder(model, settings, len(prompt), reused)
        sequence.forget(reused)
        sequence.append(prompt[reused:])
        speculation = _speculation(sequence, settings, drafter)
        if settings.n_predict == 0:
            yield builder.end("length")
            return
        for token in _chosen(sequence, sampler, settings, builder, speculation, len(prompt)):
            if speculation is not None:
                builder.drafted, builder.accepted = speculation.drafted, speculation.accepted
            step = builder.take(token)
            yield step
            if step.finish_reason is not None:
                return
        yield builder.end("context")


def _speculation(
    sequence: Sequence, settings: GenerationSettings, drafter: Drafter | None
) -> Speculation | None:
    if drafter is None:
        return None
    from minitron_engine.generation.speculative import ExactVerifier, Speculation

    sampling = settings.sampling
    if sampling.greedy and not sampling.plain:
        # the lead of the likeliest token says nothing where its logit is changed afterwards
        return None
    verifier = ExactVerifier(sequence, settings.draft_max + 1) if sampling.greedy else None
    return Speculation(drafter, settings.draft_max, verifier)


def _chosen(
    sequence: Sequence,
    sampler: Sampler,
    settings: GenerationSettings,
    builder: StepBuilder,
    speculation: Speculation | None,
    prompt: int,
) -> Iterator[int | None]:
    """Tokens until the context is full, each decoded when the next one is asked for."""
    context = sequence.context
    keep = settings.keep + context.model.add_bos
    keep = keep if 0 <= settings.keep <= prompt else prompt
    token = sampler.sample(context)
    yield token
    while token is not None:
        full = len(sequence) + 1 >= context.n_ctx
        if full and not (settings.context_shift and sequence.shift(keep)):
            return
        if speculation is None:
            sequence.append([token])
            token = sampler.sample(context)
            yield token
            continue
        room = settings.n_predict - builder.tokens if settings.n_predict >= 0 else context.n_ctx
        for following in speculation.follow(sequence, sampler, token, room):
            token = following
            yield token

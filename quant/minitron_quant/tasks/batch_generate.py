"""Greedy generation for many prompts at once, side by side in one context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minitron_engine.generation.generate import GenerationSettings
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.slots import Job, Slots
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.tasks.prefix_sharing import drop_after

# texts that are generated side by side
_SLOTS = 8


@dataclass(frozen=True)
class GreedySettings:
    """A text ends before the first string of `stop`, at the model's end, or after n_predict tokens.

    n_ctx: the most tokens of a prompt and its text, None for as many as the model was trained on.
    """

    stop: tuple[str, ...]
    n_predict: int
    n_batch: int = 512
    threads: int | None = None
    n_ctx: int | None = None


def generate_batch(
    model: Model,
    prompts: Sequence[str],
    settings: GreedySettings,
    on_done: Callable[[int], None] = lambda _count: None,
) -> tuple[list[str], int]:
    """Texts in the order of the prompts, and how many prompts lost their beginning.

    Prompts that leave no room in n_ctx lose it, behind BOS. on_done gets the number of texts that
    are finished.
    """
    if not prompts:
        return [], 0
    room = max((settings.n_ctx or model.n_ctx_train) - settings.n_predict, 2)
    whole = [_tokenize(model, text) for text in prompts]
    tokens = [drop_after(item, room, int(model.add_bos)) for item in whole]
    n_seq = min(_SLOTS, len(tokens), settings.n_batch)
    context_settings = ContextSettings(
        n_ctx=n_seq * (max(map(len, tokens)) + settings.n_predict),
        n_batch=settings.n_batch,
        n_seq=n_seq,
        unified=True,
        n_outputs=n_seq,
        threads=settings.threads,
    )
    greedy = SamplingSettings(seed=0, temperature=0)
    how = GenerationSettings(greedy, settings.n_predict, settings.stop)
    jobs = [Job(item, how) for item in tokens]
    with open_context(model, context_settings) as context:
        slots = Slots(context, n_seq)
        for job in jobs:
            slots.submit(job)
        finished = 0
        while not slots.idle:
            for job, _ in slots.step():
                if job.error is not None:
                    raise job.error
                if job.done:
                    finished += 1
                    on_done(finished)
    shortened = sum(short is not item for short, item in zip(tokens, whole, strict=True))
    return [job.result.text for job in jobs], shortened


def _tokenize(model: Model, text: str) -> Tokens:
    tokens = model.tokenize(text, add_special=True, parse_special=False)
    return tokens if len(tokens) else np.array([model.bos], dtype=np.int32)

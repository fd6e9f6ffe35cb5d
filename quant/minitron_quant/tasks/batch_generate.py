"""Greedy generation for many prompts at once; the prefix that all share is decoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minitron_engine.generation.sampler import GreedySampler
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.sequence import common_prefix
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.generation.slots import Slots
from minitron_engine.generation.steps import GenerationSettings
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.tasks.prefix_sharing import drop_after

# texts that are generated side by side
_SLOTS = 8
_GREEDY = SamplingSettings(seed=0, temperature=0.0)


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

    Prompts that leave no room in n_ctx lose it, behind BOS. `on_done` gets the number of finished
    texts.
    """
    if not prompts:
        return [], 0
    room = max((settings.n_ctx or model.n_ctx_train) - settings.n_predict, 2)
    whole = [_prompt(model, text) for text in prompts]
    tokens = [drop_after(item, room, int(model.add_bos)) for item in whole]
    # no prompt is shared whole: the logits of its last token begin the text
    shared = min(
        *(common_prefix(tokens[0], item) for item in tokens), *(len(t) - 1 for t in tokens)
    )
    count = min(_SLOTS, len(tokens), settings.n_batch)
    longest = max(map(len, tokens)) + settings.n_predict
    context_settings = ContextSettings(
        n_ctx=max(shared + count * (longest - shared), settings.n_batch),
        n_batch=settings.n_batch,
        n_seq=count,
        unified=True,
        n_outputs=count,
        threads=settings.threads,
    )
    generation = GenerationSettings(_GREEDY, settings.n_predict, settings.stop)
    requests = [GenerationRequest(item, generation, GreedySampler()) for item in tokens]
    with open_context(model, context_settings) as context:
        slots = Slots(context, count, longest)
        slots.preload(tokens[0][:shared])
        for request in requests:
            slots.submit(request)
        finished = 0
        while not slots.idle:
            for request, _ in slots.step():
                if request.error is not None:
                    raise request.error
                if request.done:
                    finished += 1
                    on_done(finished)
    shortened = sum(short is not item for short, item in zip(tokens, whole, strict=True))
    return [request.result.text for request in requests], shortened


def _prompt(model: Model, text: str) -> Tokens:
    tokens = model.tokenize(text, add_special=True, parse_special=False)
    return tokens if len(tokens) else np.array([model.bos], dtype=np.int32)

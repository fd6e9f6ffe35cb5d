"""Generate text, and hold a conversation, with a loaded model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from minitron_engine.generation.generate import generate as generate_steps
from minitron_engine.generation.generate import prompt_ids
from minitron_engine.generation.sampling import random_seed, settings_for
from minitron_engine.generation.steps import GenerationSettings, GenerationStep
from minitron_engine.llama.context import open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings

if TYPE_CHECKING:
    from minitron_engine.generation.chat import Conversation

# default tokens of a context
DEFAULT_CONTEXT = 4096
_BATCH = 2048
_CHAT_BATCH = 512


def generate(
    model: Model, prompt: str, *, context: ContextSettings | None = None, **given: Any
) -> Iterator[GenerationStep]:
    """Continue a prompt and yield a step for each token; the last one has the `finish_reason`.

    A step has the text that it adds, the token, and `timings` in tokens and seconds.
    given: fields of GenerationSettings (n_predict, stop …) and of SamplingSettings (seed,
    temperature …); the rest is what the model recommends, or llama.cpp's default.
    context: by default room for prompt and answer, as far as the model was trained.
    Raises Usage for a prompt longer than the context and for settings out of range.
    """
    tokens = prompt_ids(model, prompt)
    settings = _settings(model, given)
    if context is None:
        n_ctx = context_size(model, len(tokens) + max(settings.n_predict, 0))
        context = ContextSettings(n_ctx, _BATCH)
    with open_context(model, context) as opened:
        yield from generate_steps(opened, tokens, settings)


@contextmanager
def chat(
    model: Model,
    *,
    system: str = "",
    template: bool = True,
    context: ContextSettings | None = None,
    **given: Any,
) -> Iterator[Conversation]:
    """A conversation for a `with` block; its `say(text)` yields the steps of an answer.

    system: the instructions of the model. template: use the model's chat template; without it
    the model continues one text that both sides write. given, context: as in `generate`; answers
    have no limit by default.
    Raises Unsupported for a model without a template.
    """
    from minitron_engine.generation.chat import Conversation
    from minitron_engine.generation.slots import Slots
    from minitron_engine.isolation.chat_template import open_template

    settings = _settings(model, {"n_predict": -1} | given)
    if context is None:
        context = ContextSettings(context_size(model), _CHAT_BATCH, n_outputs=1)
    with ExitStack() as stack:
        rendered = stack.enter_context(open_template(model)) if template else None
        slots = Slots(stack.enter_context(open_context(model, context)), 1)
        stack.callback(slots.close)
        conversation = Conversation(model, slots, settings, rendered)
        if system:
            conversation.set_system(system)
        yield conversation


def context_size(model: Model, tokens: int = 0) -> int:
    """A context of at least `tokens`, but no longer than those that the model was trained on."""
    # beyond them its text makes no sense
    return min(max(DEFAULT_CONTEXT, tokens), max(model.n_ctx_train, 8))


def _settings(model: Model, given: dict[str, Any]) -> GenerationSettings:
    own = {each.name for each in fields(GenerationSettings)} & given.keys()
    sampling = {name: value for name, value in given.items() if name not in own}
    seed = random_seed()
    return GenerationSettings(
        settings_for(model, {"seed": seed} | sampling), **{name: given[name] for name in own}
    )

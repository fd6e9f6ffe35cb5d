"""Greedy generation for many prompts at once; the prefix that all share is decoded once."""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from minitron_engine.generation.generate import StopBuffer
from minitron_engine.llama.context import Batch, Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.tasks.prefix_sharing import common_prefix, drop_after

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


@dataclass
class _Text:
    number: int
    position: int
    held: StopBuffer
    written: int = 0
    token: int = -1
    text: str = ""
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )


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
    whole = [_prompt(model, text) for text in prompts]
    tokens = [drop_after(item, room, int(model.add_bos)) for item in whole]
    # the last token of every prompt is decoded by itself: its logits begin the text
    shared = min(
        *(common_prefix(tokens[0], item) for item in tokens), *(len(t) - 1 for t in tokens)
    )
    slots = min(_SLOTS, len(tokens), settings.n_batch)
    longest = max(map(len, tokens)) - shared + settings.n_predict
    context_settings = ContextSettings(
        n_ctx=max(shared + slots * longest, settings.n_batch),
        n_batch=settings.n_batch,
        n_seq=slots + 1,
        unified=True,
        n_outputs=slots + 1,
        threads=settings.threads,
    )
    texts = [""] * len(tokens)
    with open_context(model, context_settings) as context:
        generator = _BatchGenerator(context, settings, slots)
        for count, (number, text) in enumerate(generator.run(tokens, shared), 1):
            texts[number] = text
            on_done(count)
    shortened = sum(short is not item for short, item in zip(tokens, whole, strict=True))
    return texts, shortened


def _prompt(model: Model, text: str) -> Tokens:
    tokens = model.tokenize(text, add_special=True, parse_special=False)
    return tokens if len(tokens) else np.array([model.bos], dtype=np.int32)


class _BatchGenerator:
    def __init__(self, context: Context, settings: GreedySettings, slots: int) -> None:
        self._context = context
        self._settings = settings
        self._batch = Batch(settings.n_batch)
        self._free = list(range(1, slots + 1))
        self._active: dict[int, _Text] = {}

    def run(self, prompts: Sequence[Tokens], shared: int) -> Iterator[tuple[int, str]]:
        """(number of the prompt, text), as they are finished."""
        if shared:
            self._decode_run(prompts[0][:shared], 0, 0)
        waiting = iter(enumerate(prompts))
        while True:
            while self._free and (item := next(waiting, None)):
                self._begin(*item, shared)
                yield from self._finished()
            if not self._active:
                return
            self._step()
            yield from self._finished()

    def _begin(self, number: int, prompt: Tokens, shared: int) -> None:
        slot = self._free.pop()
        if shared:
            self._context.share(slot, shared)
        text = _Text(number, len(prompt), StopBuffer(self._settings.stop))
        self._active[slot] = text
        best = self._decode_run(prompt[shared:], shared, slot)
        self._take(text, best)

    def _decode_run(self, tokens: Tokens, position: int, slot: int) -> int:
        """Decode tokens of one sequence; the likeliest next token."""
        step = len(self._batch.token)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            self._batch.clear()
            self._batch.add(part, position + start, slot, np.arange(len(part)) == len(part) - 1)
            self._context.decode(self._batch)
        return int(self._context.logits(1)[0].argmax())

    def _step(self) -> None:
        self._batch.clear()
        for slot, text in self._active.items():
            token = np.array([text.token], dtype=np.int32)
            self._batch.add(token, text.position, slot, np.ones(1, dtype=np.bool_))
            text.position += 1
        self._context.decode(self._batch)
        best = self._context.logits(len(self._active)).argmax(axis=1)
        for text, token_id in zip(self._active.values(), best, strict=True):
            self._take(text, int(token_id))

    def _take(self, text: _Text, token: int) -> None:
        """Append a token; one that ends the text leaves -1 in its place."""
        model = self._context.model
        if model.is_end(token):
            text.token = -1
        else:
            text.token = token
            text.written += 1
            text.text += text.held.push(text.decoder.decode(model.piece(token)))
        if text.held.stopped or text.written >= self._settings.n_predict:
            text.token = -1

    def _finished(self) -> Iterator[tuple[int, str]]:
        for slot, text in list(self._active.items()):
            if text.token < 0:
                del self._active[slot]
                self._context.forget(slot)
                self._free.append(slot)
                rest = text.held.push(text.decoder.decode(b"", final=True)) + text.held.rest()
                yield text.number, text.text + rest

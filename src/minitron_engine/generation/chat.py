"""A conversation with a model: messages in, streamed answers out, with the cache reused."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from minitron_core.errors import Usage
from minitron_engine.generation.generate import prompt_tokens
from minitron_engine.generation.slot import GenerationRequest
from minitron_engine.generation.slots import Slots
from minitron_engine.generation.steps import GenerationSettings, GenerationStep
from minitron_engine.isolation.chat_template import ChatTemplate, Message, chat_tokens
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.process import interrupts

_MOST_SEEDS = 2**32 - 1


class Conversation:
    """Messages and their answers; without a template, one text that both sides continue.

    left_out: how many of the oldest messages (or tokens, without a template) did not fit into the
    context the last time. used: tokens of the context after the last answer.
    """

    def __init__(
        self,
        model: Model,
        slots: Slots,
        settings: GenerationSettings,
        template: ChatTemplate | None,
    ) -> None:
        self._model, self._slots, self._template = model, slots, template
        self._settings = settings
        self._repeated = 0
        self.messages: list[Message] = []
        self.left_out = 0
        self.used = 0

    @property
    def n_ctx(self) -> int:
        """The size of the context in tokens."""
        return self._slots.n_ctx

    def say(self, text: str) -> Iterator[GenerationStep]:
        """Add a user's message and yield the steps of the answer. Errors leave messages as before.

        Ctrl-C ends the answer where it is `interrupts.deferred`.
        """
        self.messages.append({"role": "user", "content": text})
        try:
            yield from self._answer()
        except BaseException:
            self.messages.pop()
            raise

    def regenerate(self) -> Iterator[GenerationStep]:
        """Yield the steps of another answer to the user's last message, drawn with another seed."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise Usage("there is no answer yet to regenerate")
        last = self.messages.pop()
        self._repeated += 1
        try:
            yield from self._answer()
        except BaseException:
            self.messages.append(last)
            raise

    def set_system(self, text: str) -> None:
        """Set the system message; an empty text removes it. Usage: there is no chat template."""
        if self._template is None and text:
            raise Usage("a system message needs a chat template")
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}] * bool(text) + rest

    def _answer(self) -> Iterator[GenerationStep]:
        tokens = self._prompt()
        sampling = self._settings.sampling
        seed = (sampling.seed + self._repeated) % _MOST_SEEDS
        settings = replace(self._settings, sampling=replace(sampling, seed=seed))
        request = GenerationRequest(tokens, settings)
        self._slots.submit(request)
        try:
            while not request.done and not interrupts.pending():
                for _, step in self._slots.step():
                    if request.error is None:
                        yield step
            if request.error is not None:
                raise request.error
            if not request.done:
                yield GenerationStep("", None, "interrupted", request.result.timings)
        finally:
            self._slots.cancel(request)
        self.used = len(tokens) + len(request.result.tokens)
        self.messages.append({"role": "assistant", "content": request.result.text})

    def _prompt(self) -> Tokens:
        """The prompt, without the oldest messages if not all fit beside an answer."""
        room = self.n_ctx - min(256, self.n_ctx // 4)
        if self._template is None:
            tokens = prompt_tokens(self._model, self._text())
            self.left_out = max(len(tokens) - room, 0)
            start = [self._model.bos] if self._model.add_bos and self.left_out else []
            return np.concatenate([np.array(start, np.int32), tokens[self.left_out + len(start) :]])
        kept = list(self.messages)
        first = 1 if kept and kept[0]["role"] == "system" else 0
        while True:
            tokens = chat_tokens(self._model, self._template.render(kept))
            if len(tokens) <= room or len(kept) <= first + 1:
                self.left_out = len(self.messages) - len(kept)
                return tokens
            # a question leaves with its answer, since templates expect alternating roles
            del kept[first : first + 2]

    def _text(self) -> str:
        text = ""
        for message in self.messages:
            text += "\n" if text and message["role"] == "user" else ""
            text += message["content"]
        return text

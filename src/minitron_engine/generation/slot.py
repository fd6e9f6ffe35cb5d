"""One sequence of a context, and the request that it works on: prefill, draft, choose, stop."""

from contextlib import ExitStack

import numpy as np

from minitron_core.errors import MinitronError
from minitron_engine.generation.logprobs import token_logprob
from minitron_engine.generation.sampler import TokenSampler, open_sampler
from minitron_engine.generation.sequence import common_prefix
from minitron_engine.generation.speculative import Drafter
from minitron_engine.generation.steps import (
    Generation,
    GenerationSettings,
    GenerationStep,
    StepBuilder,
)
from minitron_engine.llama.context import Context
from minitron_engine.llama.tokenization import Tokens


class GenerationRequest:
    """A prompt for `Slots`, and its answer so far; `error` says why it had to be given up.

    sampler: chooses the tokens instead of the samplers that the settings name.
    """

    def __init__(
        self, tokens: Tokens, settings: GenerationSettings, sampler: TokenSampler | None = None
    ) -> None:
        self.tokens, self.settings, self.sampler = tokens, settings, sampler
        self.result = Generation()
        self.error: MinitronError | None = None
        self.done = False


Steps = list[tuple[GenerationRequest, GenerationStep]]


class Slot:
    """One sequence: the tokens in its cache, and the request that it works on.

    drafts: of the tokens that are to be decoded, the last ones that a drafter proposed.
    """

    def __init__(self, sequence: int, context: Context, n_ctx: int) -> None:
        self.sequence = sequence
        self.cached: list[int] = []
        self.todo: Tokens = np.zeros(0, dtype=np.int32)
        self.request: GenerationRequest | None = None
        self.drafter: Drafter | None = None
        self._drafts = 0
        self._context, self._n_ctx = context, n_ctx
        self._resources = ExitStack()

    @property
    def every(self) -> bool:
        """Whether all tokens that are to be decoded need logits."""
        if self.request is None:
            return False
        scores = self.request.settings.prompt_logprobs and not self.request.result.tokens
        return self._drafts > 0 or scores

    def common(self, tokens: Tokens) -> int:
        """How much of a prompt is in the cache; its last token is always decoded again."""
        return min(common_prefix(self.cached, tokens), len(tokens) - 1)

    def start(self, request: GenerationRequest) -> None:
        """Take a request on, with what the cache has of its prompt."""
        self.request = request
        # tokens that are scored are all decoded
        reused = 0 if request.settings.prompt_logprobs else self.common(request.tokens)
        if not self._context.truncate(reused, self.sequence):
            # a model whose cache cannot be cut
            self._context.truncate(0, self.sequence)
            reused = 0
        del self.cached[reused:]
        self.todo, self._drafts = request.tokens[reused:], 0
        model, settings = self._context.model, request.settings
        if request.sampler is None:
            sampler = self._resources.enter_context(open_sampler(model, settings.sampling))
            sampler.accept_prompt(request.tokens.tolist())
            self._sampler: TokenSampler = sampler
        else:
            self._sampler = request.sampler
        self._builder = StepBuilder(model, settings, len(request.tokens), reused)

    def decoded(self, count: int, output: int) -> Steps:
        """Go on after `count` tokens were decoded; nothing comes of it inside a prompt.

        output: the place of the last of them in the batch.
        """
        request = self.request
        assert request is not None
        part, first = self.todo[:count].tolist(), output - count + 1
        self.todo = self.todo[count:]
        try:
            if self._drafts:
                steps = self._verify(part, first)
            else:
                self.cached += part
                if self.every:
                    self._score_prompt(request, first, count)
                if len(self.todo):
                    return []
                steps = [self._advance(output)]
            self._prepare_next(request)
        except MinitronError as error:
            return [self.fail(error)]
        return [(request, step) for step in steps]

    def _verify(self, part: list[int], first: int) -> list[GenerationStep]:
        """Choose a token after each decoded one, as long as that is what the drafter proposed."""
        steps: list[GenerationStep] = []
        start, builder = len(self.cached), self._builder
        builder.drafted = (builder.drafted or 0) + len(part) - 1
        accepted = builder.accepted or 0
        for row, token in enumerate(part):
            self.cached.append(token)
            builder.accepted = accepted + row
            steps.append(self._advance(first + row))
            following = part[row + 1] if row + 1 < len(part) else None
            if self.request is None or steps[-1].token != following:
                break
        if len(self.cached) < start + len(part):
            self._context.truncate(len(self.cached), self.sequence)
        return steps

    def _advance(self, output: int) -> GenerationStep:
        """Choose the token that follows one of the decode's outputs, if there is to be one."""
        request = self.request
        assert request is not None
        if request.settings.n_predict == 0:
            return self._finish(request, self._builder.end("length"))
        token, most = self._sampler.sample(self._context, output), request.settings.logprobs
        logprob = None
        if most is not None and token is not None:
            logprob = token_logprob(self._context.output_logits(output), token, most)
        step = self._builder.take(token, logprob)
        if step.finish_reason is None and len(self.cached) >= self._n_ctx:
            step = self._builder.end("context", step.text, step.token, logprob)
        return self._finish(request, step)

    def _finish(self, request: GenerationRequest, step: GenerationStep) -> GenerationStep:
        """Add a step to the answer, and be free after the last one."""
        request.result.add(step)
        if step.finish_reason is not None:
            request.done = True
            self.release()
        return step

    def _prepare_next(self, request: GenerationRequest) -> None:
        """Let the last token be decoded next, with what the drafter proposes after it."""
        self.todo, self._drafts = self.todo[:0], 0
        if request.done:
            return
        token, settings = request.result.tokens[-1], request.settings
        most = min(settings.draft_max, self._n_ctx - len(self.cached) - 2)
        if settings.n_predict >= 0:
            most = min(most, settings.n_predict - len(request.result.tokens) - 1)
        drafts: list[int] = []
        if self.drafter is not None and most > 0:
            drafts = self.drafter.propose([*self.cached, token], most)
        self.todo, self._drafts = np.array([token, *drafts], np.int32), len(drafts)

    def _score_prompt(self, request: GenerationRequest, first: int, count: int) -> None:
        """ln p of the prompt's tokens that follow the decoded ones."""
        end = len(self.cached)
        for row in range(count):
            following = end - count + row + 1
            if following < len(request.tokens):
                logits, token = self._context.output_logits(first + row), request.tokens[following]
                found = token_logprob(logits, int(token), request.settings.logprobs or 0)
                request.result.prompt_logprobs.append(found)

    def fail(self, error: MinitronError) -> tuple[GenerationRequest, GenerationStep]:
        """End the request with an error, and forget the cache, of which nothing is certain."""
        request = self.request
        assert request is not None
        request.error, request.done = error, True
        self.release()
        self._context.truncate(0, self.sequence)
        self.cached.clear()
        step = GenerationStep("", None, "error", request.result.timings)
        request.result.add(step)
        return request, step

    def release(self) -> None:
        """Be free for another request; what is in the cache stays there."""
        self.request = None
        self.todo = self.todo[:0]
        self._resources.close()

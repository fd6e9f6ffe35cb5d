"""What one token adds to an answer: whole characters, the reason to end, timings."""

import codecs
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.llama.model import Model

if TYPE_CHECKING:
    from minitron_engine.generation.logprobs import TokenLogprob

# end: the model ended it; stop: a stop string came; length: n_predict tokens are there; context:
# the context is full; grammar: the grammar leaves no token; interrupted: by Ctrl-C
FinishReason = Literal["end", "stop", "length", "context", "grammar", "interrupted", "error"]


@dataclass(frozen=True)
class GenerationSettings:
    """How much to generate and when to stop; `n_predict` in tokens, below 0 for no limit.

    When the context is full, the answer ends, or with `context_shift` goes on without the older
    half of what follows the prompt's first `keep` tokens (below 0: all of the prompt).
    draft_max: the most tokens that a drafter proposes at once.
    logprobs: of each token of the answer, and of so many likeliest ones beside it; None for no
    log-probabilities. prompt_logprobs: of the prompt's tokens too. Only `Slots` gives them.
    """

    sampling: SamplingSettings
    n_predict: int = 128
    stop: tuple[str, ...] = ()
    context_shift: bool = False
    keep: int = 0
    draft_max: int = 8
    logprobs: int | None = None
    prompt_logprobs: bool = False


class Timings(NamedTuple):
    """Tokens and seconds up to a step; the first token's time belongs to the prompt.

    reused_tokens: of the prompt, found in the cache. drafted, accepted: tokens that a drafter
    proposed, and those of them that the model chose too; None without speculative decoding.
    """

    prompt_tokens: int = 0
    reused_tokens: int = 0
    tokens: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    drafted: int | None = None
    accepted: int | None = None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt processing speed."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token."""
        later = self.tokens - 1
        return later / self.generation_seconds if later > 0 and self.generation_seconds else 0.0


class GenerationStep(NamedTuple):
    """One step of an answer.

    text: what can be shown now; never half a character, and nothing of a stop string. It may lag
    behind the token, which is None in a step that only ends the answer.
    finish_reason: why the answer ends with this step, None where it goes on.
    """

    text: str
    token: int | None
    finish_reason: FinishReason | None
    timings: Timings
    logprob: "TokenLogprob | None" = None


@dataclass
class Generation:
    """An answer as far as its steps were added.

    prompt_logprobs: of the prompt's tokens from its second on, where they were asked for.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: "list[TokenLogprob]" = field(default_factory=list)
    prompt_logprobs: "list[TokenLogprob]" = field(default_factory=list)
    finish_reason: FinishReason | None = None
    timings: Timings = field(default_factory=Timings)

    def add(self, step: GenerationStep) -> None:
        """Take in the next step."""
        self.text += step.text
        if step.token is not None:
            self.tokens.append(step.token)
        if step.logprob is not None:
            self.logprobs.append(step.logprob)
        self.finish_reason, self.timings = step.finish_reason, step.timings


def collect(steps: Iterable[GenerationStep]) -> Generation:
    """The whole answer that the steps make."""
    result = Generation()
    for step in steps:
        result.add(step)
    return result


class StopBuffer:
    """Hold back text that could be the beginning of a stop string.

    `push` gives what is safe to show; `stopped` is true once a stop string is complete.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; returns the part that no stop string can claim any more."""
        if not self._stops:
            return text
        self._held += text
        found = [at for at in map(self._held.find, self._stops) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def rest(self) -> str:
        """What is still held back once the generation is over."""
        return "" if self.stopped else self._held

    def _overlap(self, stop: str) -> int:
        # the longest beginning of the stop string that the held text ends with
        longest = min(len(stop) - 1, len(self._held))
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if self._held.endswith(stop[:n])), 0)


class StepBuilder:
    """Makes the steps of one answer from the tokens that are chosen for it, timed from now on."""

    def __init__(
        self, model: Model, settings: GenerationSettings, prompt: int, reused: int
    ) -> None:
        """prompt: tokens of the prompt; reused: those of them that the cache holds already."""
        self.tokens = 0
        self.drafted: int | None = None
        self.accepted: int | None = None
        self._model, self._settings = model, settings
        self._prompt, self._reused = prompt, reused
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._in_character = False
        self._held = StopBuffer(settings.stop)
        self._started = time.perf_counter()
        self._prompt_seconds = self._generation_seconds = 0.0

    def take(self, token: int | None, logprob: "TokenLogprob | None" = None) -> GenerationStep:
        """The step of a token that was chosen just now; None: the grammar leaves none."""
        passed = time.perf_counter() - self._started
        if not self.tokens:
            # the logits are waited for by the first sample, not by the decode before it
            self._prompt_seconds = passed
        self._generation_seconds = passed - self._prompt_seconds
        if token is None:
            return self.end("grammar")
        text = None if self._in_character else self._model.text(token)
        if text is None:
            if self._model.is_end(token):
                return self.end("end")
            text = self._decoder.decode(self._model.piece(token))
            self._in_character = bool(self._decoder.getstate()[0])
        self.tokens += 1
        text = self._held.push(text)
        if self._held.stopped:
            return self._step(text, token, "stop", logprob)
        if self.tokens == self._settings.n_predict:
            return self.end("length", text, token, logprob)
        return self._step(text, token, None, logprob)

    def end(
        self,
        reason: FinishReason,
        text: str = "",
        token: int | None = None,
        logprob: "TokenLogprob | None" = None,
    ) -> GenerationStep:
        """The last step, with all text that was held back after `text`."""
        text += self._held.push(self._decoder.decode(b"", final=True)) + self._held.rest()
        return self._step(text, token, reason, logprob)

    def _step(
        self,
        text: str,
        token: int | None,
        reason: FinishReason | None,
        logprob: "TokenLogprob | None",
    ) -> GenerationStep:
        timings = Timings(
            self._prompt,
            self._reused,
            self.tokens,
            self._prompt_seconds,
            self._generation_seconds,
            self.drafted,
            self.accepted,
        )
        return GenerationStep(text, token, reason, timings, logprob)

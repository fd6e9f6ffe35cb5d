"""Generate text: prompt in, a stream of whole characters out."""

import codecs
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from minitron_core.errors import Usage
from minitron_engine.generation.sampler import Sampler, open_sampler
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.generation.sequence import Sequence
from minitron_engine.generation.speculative import Drafter, Exact, Speculation, common_prefix
from minitron_engine.llama.context import Context
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens


@dataclass(frozen=True)
class GenerationSettings:
    """How much to generate and when to stop; `n_predict` in tokens, below 0 for no limit.

    When the context is full, the answer ends, or with `context_shift` goes on without the older
    half of what follows the prompt's first `keep` tokens (below 0: all of the prompt).
    """

    sampling: SamplingSettings
    n_predict: int = 128
    stop: tuple[str, ...] = ()
    context_shift: bool = False
    keep: int = 0
    draft_max: int = 8


@dataclass
class Generation:
    """What happened, filled in while the text streams; times in seconds."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str = "length"
    speculation: Speculation | None = None
    prompt_seconds: float = 0.0
    first_token_seconds: float = 0.0
    generation_seconds: float = 0.0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt processing speed."""
        computed = self.prompt_tokens - self.reused_tokens
        return computed / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token, which the prompt's decode already paid for."""
        later = len(self.tokens) - 1
        return later / self.generation_seconds if later > 0 and self.generation_seconds else 0.0


class StopBuffer:
    """Hold back text that could be the beginning of a stop string.

    `push` gives what is safe to show; `stopped` turns true where a stop string was completed.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; returns the part that no stop string can claim any more."""
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


def prompt_tokens(model: Model, prompt: str) -> Tokens:
    """Token ids of a prompt, BOS included where the model wants one."""
    tokens = model.tokenize(prompt, add_special=True, parse_special=True)
    if len(tokens):
        return tokens
    if model.bos < 0:
        raise Usage("the prompt is empty and the model has no token to begin with", "give a prompt")
    return np.array([model.bos], dtype=np.int32)


def generate(
    context: Context,
    tokens: Tokens,
    settings: GenerationSettings,
    result: Generation,
    *,
    sequence: Sequence | None = None,
    drafter: Drafter | None = None,
) -> Iterator[str]:
    """Decode a prompt and yield text as it comes, never half a character, no stop string in it.

    sequence: one that may have computed the beginning of the prompt already; it holds everything
    at the end. Fills `result` on the way, also when the consumer stops early or Ctrl-C is pressed.
    """
    if len(tokens) > context.n_ctx - 1:
        raise Usage(
            f"the prompt has {len(tokens)} tokens, and the context takes {context.n_ctx}",
            f"raise --ctx above {len(tokens)}, or shorten the prompt",
        )
    held = StopBuffer(settings.stop)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    result.prompt_tokens = len(tokens)
    sequence = Sequence(context) if sequence is None else sequence
    try:
        for piece in _pieces(sequence, tokens.tolist(), settings, result, drafter):
            shown = held.push(decoder.decode(piece))
            result.text += shown
            if shown:
                yield shown
            if held.stopped:
                result.finish_reason = "stop"
                return
        rest = held.push(decoder.decode(b"", final=True)) + held.rest()
        result.text += rest
        if rest:
            yield rest
    except KeyboardInterrupt:
        result.finish_reason = "interrupted"


def _pieces(
    sequence: Sequence,
    prompt: list[int],
    settings: GenerationSettings,
    result: Generation,
    drafter: Drafter | None,
) -> Iterator[bytes]:
    model = sequence.context.model
    with open_sampler(model, settings.sampling) as sampler:
        sampler.accept_prompt(prompt)
        started = time.perf_counter()
        result.reused_tokens = min(common_prefix(sequence.tokens, prompt), len(prompt) - 1)
        sequence.forget(result.reused_tokens)
        sequence.append(prompt[result.reused_tokens :])
        result.speculation = _speculation(sequence, settings, drafter)
        if settings.n_predict == 0:
            return
        for token in _chosen(sequence, sampler, settings, result, len(prompt)):
            now = time.perf_counter()
            if not result.tokens:
                # the logits are waited for by the first sample, not by the decode before it
                result.prompt_seconds = result.first_token_seconds = now - started
            result.generation_seconds = now - started - result.prompt_seconds
            if token is None:
                result.finish_reason = "grammar"
                return
            if model.is_end(token):
                result.finish_reason = "end"
                return
            result.tokens.append(token)
            yield model.piece(token)
            if len(result.tokens) == settings.n_predict:
                return


def _speculation(
    sequence: Sequence, settings: GenerationSettings, drafter: Drafter | None
) -> Speculation | None:
    if drafter is None:
        return None
    sampling = settings.sampling
    if sampling.greedy and not sampling.plain:
        # the lead of the likeliest token says nothing where its logit is changed afterwards
        return None
    exact = Exact(sequence, settings.draft_max + 1) if sampling.greedy else None
    return Speculation(drafter, settings.draft_max, exact)


def _chosen(
    sequence: Sequence,
    sampler: Sampler,
    settings: GenerationSettings,
    result: Generation,
    prompt: int,
) -> Iterator[int | None]:
    """Tokens without end, or until the context is full."""
    handle, n_ctx = sequence.context.handle, sequence.context.n_ctx
    keep = settings.keep + sequence.context.model.add_bos
    keep = keep if 0 <= settings.keep <= prompt else prompt
    token = sampler.sample(handle)
    yield token
    while token is not None:
        if len(sequence) + 1 >= n_ctx and not (settings.context_shift and sequence.shift(keep)):
            result.finish_reason = "context"
            return
        if result.speculation is None:
            sequence.append([token])
            token = sampler.sample(handle)
            yield token
            continue
        room = settings.n_predict - len(result.tokens) if settings.n_predict >= 0 else n_ctx
        for following in result.speculation.follow(sequence, sampler, token, room):
            token = following
            yield token

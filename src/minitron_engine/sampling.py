"""The chain of samplers, in the order and with the meaning of llama.cpp's own tools."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minitron_engine import log
from minitron_engine.binding import api
from minitron_engine.errors import Usage
from minitron_engine.model import Model

PENALTY_WINDOW = 64


@dataclass(frozen=True)
class SamplingSettings:
    """Defaults are llama.cpp's; a temperature of 0 always takes the likeliest token."""

    seed: int
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    grammar: str = ""


class Sampler:
    """A chain of samplers that remembers what was accepted; made by `open_sampler`."""

    def __init__(self, chain: int, penalties: int) -> None:
        self._chain = chain
        self._penalties = penalties

    def accept_prompt(self, token: int) -> None:
        """Let the penalties know a token of the prompt; a grammar starts after the prompt."""
        api.llama_sampler_accept(self._penalties, token)

    def sample(self, context: int) -> int:
        """Choose the next token from the last logits of a context and accept it."""
        token: int = api.llama_sampler_sample(self._chain, context, -1)
        return token


@contextmanager
def open_sampler(model: Model, settings: SamplingSettings) -> Iterator[Sampler]:
    """Build the chain grammar → penalties → top-k → top-p → min-p → temperature → draw.

    Raises Usage for a grammar that does not parse.
    """
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    try:
        if settings.grammar:
            api.llama_sampler_chain_add(chain, _grammar(model, settings.grammar))
        penalties = api.llama_sampler_init_penalties(
            model.n_vocab, PENALTY_WINDOW, settings.repeat_penalty, 0.0, 0.0
        )
        for part in (
            penalties,
            api.llama_sampler_init_top_k(settings.top_k),
            api.llama_sampler_init_top_p(settings.top_p, 0),
            api.llama_sampler_init_min_p(settings.min_p, 0),
            api.llama_sampler_init_temp_ext(settings.temperature, 0.0, 1.0),
            api.llama_sampler_init_dist(settings.seed),
        ):
            api.llama_sampler_chain_add(chain, part)
        yield Sampler(chain, penalties)
    finally:
        api.llama_sampler_free(chain)


def _grammar(model: Model, text: str) -> int:
    sampler: int | None = api.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    if not sampler:
        reason = log.last_error()
        raise Usage(
            f"the grammar does not parse{': ' + reason if reason else ''}",
            "a grammar is GBNF text with a rule named root",
        )
    return sampler

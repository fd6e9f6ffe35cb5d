"""What chooses the next token: llama.cpp's chain of samplers with a grammar, or plain greed."""

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from typing import Any, Protocol

from minitron_core.errors import Damaged, Usage
from minitron_engine.generation.likeliest import NOT_A_NUMBER, TIED, Likeliest
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.llama import log
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context
from minitron_engine.llama.model import Model

_MIROSTAT_CANDIDATES = 100  # of mirostat 1's estimate, as in llama.cpp's tools


class TokenSampler(Protocol):
    """Chooses the token that follows what was decoded."""

    def sample(self, context: Context, output: int = -1) -> int | None:
        """A token by the logits of one of the last decode's outputs; None where none is left."""


class GreedySampler:
    """Takes the likeliest token, the first of those that are equally likely."""

    def sample(self, context: Context, output: int = -1) -> int:
        """The token with the largest logit."""
        return int(context.output_logits(output).argmax())


class Sampler:
    """A chain of samplers that remembers what was accepted; made by `open_sampler`.

    likeliest_but: tokens that are never taken, where the chain otherwise takes the likeliest; None
    where it may take another.
    """

    def __init__(self, chain: int, likeliest_but: Set[int] | None = None) -> None:
        self._chain = chain
        self._likeliest = Likeliest()
        self._likeliest_but = likeliest_but

    def accept_prompt(self, tokens: Iterable[int]) -> None:
        """Let the penalties know the prompt; a grammar starts after it."""
        for token in tokens:
            api.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, output: int = -1) -> int | None:
        """Choose and accept the token that follows one of the last decode's outputs.

        None where the grammar or schema and the biases leave no token to choose. Raises Damaged for
        logits that are not numbers.
        """
        likeliest = self._likeliest.of(context, output)
        if likeliest == NOT_A_NUMBER:
            # sorting would run out of bounds
            raise Damaged("the model computes no numbers (NaN): its weights are damaged")
        # of several that are equally likely the chain takes the one that its sorting puts first
        but = self._likeliest_but
        if but is None or likeliest == TIED or likeliest in but:
            return self.choose(context, output)
        return likeliest

    def choose(self, context: Context, output: int) -> int | None:
        """The token that the chain takes, accepted; logits are numbers."""
        token: int = api.llama_sampler_sample(self._chain, context.handle, output)
        return token


@contextmanager
def open_sampler(model: Model, settings: SamplingSettings) -> Iterator[Sampler]:
    """Build the chain and free it at the end of the block.

    Raises Usage for a grammar or a schema that cannot be followed, and for a bias of a token that
    does not exist.
    """
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    grammar = None
    try:
        if settings.grammar:
            grammar = _grammar(model, settings.grammar)
        never = _never(model, settings)
        for part in _parts(model, settings, never):
            api.llama_sampler_chain_add(chain, part)
        yield _sampler(model, settings, chain, grammar, never)
    finally:
        api.llama_sampler_free(chain)
        if grammar is not None:
            api.llama_sampler_free(grammar)


def _sampler(
    model: Model, settings: SamplingSettings, chain: int, grammar: int | None, never: list[int]
) -> Sampler:
    if grammar is None and not settings.json_schema:
        return Sampler(chain, frozenset(never) if settings.takes_likeliest else None)
    # here, since few answers follow a grammar or a schema
    from minitron_engine.generation import restricted_sampler

    if grammar is not None:
        return restricted_sampler.GrammarSampler(chain, grammar, model.n_vocab)
    return restricted_sampler.SchemaSampler(chain, model, settings.json_schema)


def _grammar(model: Model, text: str) -> int:
    from minitron_engine.isolation.grammar import check_grammar

    check_grammar(text, model.is_token)
    sampler: int | None = api.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    if not sampler:
        raise Usage(f"llama.cpp refuses the grammar: {log.last_error() or 'no reason given'}")
    return sampler


def _parts(model: Model, settings: SamplingSettings, never: list[int]) -> Iterator[int]:
    biases = _biases(model, settings, never)
    if biases:
        array: Any = (api.llama_logit_bias * len(biases))()
        array[:] = biases
        yield api.llama_sampler_init_logit_bias(model.n_vocab, len(biases), array)
    seed, entropy, rate = settings.seed, settings.mirostat_ent, settings.mirostat_lr
    if settings.mirostat:
        yield api.llama_sampler_init_temp(settings.temperature)
        if settings.mirostat == 1:
            yield api.llama_sampler_init_mirostat(
                model.n_vocab, seed, entropy, rate, _MIROSTAT_CANDIDATES
            )
        else:
            yield api.llama_sampler_init_mirostat_v2(seed, entropy, rate)
        return
    for name in settings.samplers:
        if name != "adaptive_p":
            yield _CONSTRUCTORS[name](model, seed, *settings.arguments(name))
    if "adaptive_p" in settings.samplers:
        yield api.llama_sampler_init_adaptive_p(*settings.arguments("adaptive_p"), seed)
    else:
        yield api.llama_sampler_init_dist(seed)


def _biases(model: Model, settings: SamplingSettings, never: list[int]) -> list[tuple[int, float]]:
    for token, _ in settings.logit_bias:
        if not 0 <= token < model.n_vocab:
            raise Usage(f"there is no token {token} to bias: the model has {model.n_vocab}")
    return [*settings.logit_bias, *((token, -math.inf) for token in never)]


def _never(model: Model, settings: SamplingSettings) -> list[int]:
    return [*(model.ends() if settings.ignore_eos else ()), *model.suppressed()]


def _dry(model: Model, *arguments: Any) -> Any:
    *numbers, texts = arguments
    breakers = [text.encode() for text in texts]
    array = (ctypes.c_char_p * len(breakers))(*breakers)
    return api.llama_sampler_init_dry(model.vocab, *numbers, array, len(breakers))


# llama.cpp's constructors: (model, seed, the settings of the sampler's rows in their order); a 0
# among them is the least number of candidates to keep
_CONSTRUCTORS: dict[str, Callable[..., Any]] = {
    "penalties": lambda model, seed, *a: api.llama_sampler_init_penalties(model.n_vocab, *a),
    "dry": lambda model, seed, *a: _dry(model, *a),
    "top_n_sigma": lambda model, seed, n: api.llama_sampler_init_top_n_sigma(n),
    "top_k": lambda model, seed, k: api.llama_sampler_init_top_k(k),
    "typ_p": lambda model, seed, p: api.llama_sampler_init_typical(p, 0),
    "top_p": lambda model, seed, p: api.llama_sampler_init_top_p(p, 0),
    "min_p": lambda model, seed, p: api.llama_sampler_init_min_p(p, 0),
    "xtc": lambda model, seed, *a: api.llama_sampler_init_xtc(*a, 0, seed),
    "temperature": lambda model, seed, *a: api.llama_sampler_init_temp_ext(*a),
}

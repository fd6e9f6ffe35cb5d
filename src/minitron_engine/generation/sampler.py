"""What chooses the next token: llama.cpp's chain of samplers with a grammar, or plain greed."""

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import Damaged, Usage
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.isolation.grammar import check_grammar
from minitron_engine.llama import log
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context
from minitron_engine.llama.model import Model

if TYPE_CHECKING:
    from minitron_engine.generation.constraint import Constraint

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
    """A chain of samplers that remembers what was accepted; made by `open_sampler`."""

    def __init__(
        self, chain: int, grammar: int | None, constraint: "Constraint | None", n_vocab: int
    ) -> None:
        self._chain = chain
        self._grammar = grammar
        self._constraint = constraint
        self._ids = np.arange(n_vocab, dtype=np.int32)
        candidate = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._candidates = np.zeros(n_vocab if grammar or constraint else 1, dtype=candidate)

    def accept_prompt(self, tokens: Iterable[int]) -> None:
        """Let the penalties know the prompt; a grammar starts after it."""
        for token in tokens:
            api.llama_sampler_accept(self._chain, token)

    def sample(self, context: Context, output: int = -1) -> int | None:
        """Choose and accept the token that follows one of the last decode's outputs.

        None where the grammar or schema and the biases leave no token to choose. Raises Damaged for
        logits that are not numbers.
        """
        logits = context.output_logits(output)
        if math.isnan(logits.sum()):
            # sorting would run out of bounds
            raise Damaged("the model computes no numbers (NaN): its weights are damaged")
        if self._constraint is not None:
            return self._constrained(self._constraint, logits)
        if self._grammar is not None:
            return self._by_grammar(self._grammar, logits)
        token: int = api.llama_sampler_sample(self._chain, context.handle, output)
        return token

    def _constrained(self, constraint: "Constraint", logits: NDArray[np.float32]) -> int | None:
        allowed = constraint.allowed()
        if not len(allowed):
            return None
        data = self._candidates[: len(allowed)]
        data["id"], data["logit"], data["p"] = allowed, logits[allowed], 0.0
        array = _token_array(data)
        api.llama_sampler_apply(self._chain, ctypes.byref(array))
        # a bias may have taken all that the schema leaves
        if array.selected < 0 or np.isneginf(data["logit"][array.selected]):
            return None
        token = int(data["id"][array.selected])
        constraint.accept(token)
        api.llama_sampler_accept(self._chain, token)
        return token

    def _by_grammar(self, grammar: int, logits: NDArray[np.float32]) -> int | None:
        # as llama.cpp's tools: the grammar sees one token, and all of them only if it refuses that
        chosen = self._choose(logits, grammar_first=False)
        if chosen is None or not self._allows(chosen):
            chosen = self._choose(logits, grammar_first=True)
        # accepting a token that the grammar refuses would end the process
        if chosen is None or not self._allows(chosen):
            return None
        api.llama_sampler_accept(grammar, chosen)
        api.llama_sampler_accept(self._chain, chosen)
        return chosen

    def _choose(self, logits: NDArray[np.float32], *, grammar_first: bool) -> int | None:
        data = self._candidates
        data["id"], data["logit"], data["p"] = self._ids, logits, 0.0
        array = _token_array(data)
        if grammar_first:
            api.llama_sampler_apply(self._grammar, ctypes.byref(array))
            if np.isneginf(data["logit"]).all():
                return None
        api.llama_sampler_apply(self._chain, ctypes.byref(array))
        return int(data["id"][array.selected]) if 0 <= array.selected < array.size else None

    def _allows(self, token: int) -> bool:
        one = np.zeros(1, dtype=self._candidates.dtype)
        one["id"], one["logit"] = token, 1.0
        api.llama_sampler_apply(self._grammar, ctypes.byref(_token_array(one)))
        return not np.isneginf(one["logit"][0])


def _token_array(data: NDArray[Any]) -> Any:
    pointer = data.ctypes.data_as(ctypes.POINTER(api.llama_token_data))
    return api.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)


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
        for part in _parts(model, settings):
            api.llama_sampler_chain_add(chain, part)
        constraint = _constraint(model, settings.json_schema) if settings.json_schema else None
        yield Sampler(chain, grammar, constraint, model.n_vocab)
    finally:
        api.llama_sampler_free(chain)
        if grammar is not None:
            api.llama_sampler_free(grammar)


def _constraint(model: Model, schema: str) -> "Constraint":
    # llguidance is loaded only where an answer follows a schema
    from minitron_engine.generation.constraint import Constraint, compile_schema

    return Constraint(model, compile_schema(schema))


def _grammar(model: Model, text: str) -> int:
    check_grammar(text, model.is_token)
    sampler: int | None = api.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    if not sampler:
        raise Usage(f"llama.cpp refuses the grammar: {log.last_error() or 'no reason given'}")
    return sampler


def _parts(model: Model, settings: SamplingSettings) -> Iterator[int]:
    biases = _biases(model, settings)
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


def _biases(model: Model, settings: SamplingSettings) -> list[tuple[int, float]]:
    for token, _ in settings.logit_bias:
        if not 0 <= token < model.n_vocab:
            raise Usage(f"there is no token {token} to bias: the model has {model.n_vocab}")
    never = model.suppressed()
    if settings.ignore_eos:
        never = [*filter(model.is_end, range(model.n_vocab)), *never]
    return [*settings.logit_bias, *((token, -math.inf) for token in never)]


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

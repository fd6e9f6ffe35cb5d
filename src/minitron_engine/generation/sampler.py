"""The chain of llama.cpp's samplers, and the grammar beside it."""

import ctypes
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import Damaged, Usage
from minitron_engine.generation.sampling import SamplingSettings
from minitron_engine.isolation.grammar import check_grammar
from minitron_engine.llama import log
from minitron_engine.llama.binding import api
from minitron_engine.llama.model import Model

_MIROSTAT_CANDIDATES = 100  # of mirostat 1's estimate, as in llama.cpp's tools


class Sampler:
    """A chain of samplers that remembers what was accepted; made by `open_sampler`."""

    def __init__(self, chain: int, grammar: int | None, n_vocab: int) -> None:
        self._chain = chain
        self._grammar = grammar
        self._ids = np.arange(n_vocab, dtype=np.int32)
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._candidates = np.zeros(n_vocab if grammar else 1, dtype=kind)
        # llama.cpp writes to the same place again and again; a view of it takes time to make
        self._logits = np.zeros(0, dtype=np.float32)
        self._address = 0

    def accept_prompt(self, tokens: Iterable[int]) -> None:
        """Let the penalties know the prompt; a grammar starts after it."""
        for token in tokens:
            api.llama_sampler_accept(self._chain, token)

    def sample(self, context: int, output: int = -1) -> int | None:
        """Choose and accept the token that follows one of the last decode's outputs.

        None where the grammar and the biases together leave no token to choose.
        """
        pointer: Any = api.llama_get_logits_ith(context, output)
        address = ctypes.addressof(pointer.contents)
        if address != self._address:
            self._logits = np.ctypeslib.as_array(pointer, shape=(len(self._ids),))
            self._address = address
        if math.isnan(self._logits.sum()):
            # sorting would run out of bounds
            raise Damaged("the model computes no numbers (NaN): its weights are damaged")
        if self._grammar is None:
            token: int = api.llama_sampler_sample(self._chain, context, output)
            return token
        return self._constrained(self._logits)

    def _constrained(self, logits: NDArray[np.float32]) -> int | None:
        # as llama.cpp's tools: the grammar sees one token, and all of them only if it refuses that
        chosen = self._choose(logits, grammar_first=False)
        if chosen is None or not self._allows(chosen):
            chosen = self._choose(logits, grammar_first=True)
        # accepting a token that the grammar refuses would end the process
        if chosen is None or not self._allows(chosen):
            return None
        api.llama_sampler_accept(self._grammar, chosen)
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

    Raises Usage for a grammar that does not parse and for a bias of a token that does not exist.
    """
    chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
    grammar = None
    try:
        if settings.grammar:
            grammar = _grammar(model, settings.grammar)
        for part in _parts(model, settings):
            api.llama_sampler_chain_add(chain, part)
        yield Sampler(chain, grammar, model.n_vocab)
    finally:
        api.llama_sampler_free(chain)
        if grammar is not None:
            api.llama_sampler_free(grammar)


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
            yield _part(name, model, settings)
    if "adaptive_p" in settings.samplers:
        yield api.llama_sampler_init_adaptive_p(
            settings.adaptive_target, settings.adaptive_decay, seed
        )
    else:
        yield api.llama_sampler_init_dist(seed)


def _biases(model: Model, settings: SamplingSettings) -> list[tuple[int, float]]:
    for token, _ in settings.logit_bias:
        if not 0 <= token < model.n_vocab:
            raise Usage(f"no token {token} to bias: the model has {model.n_vocab}")
    never = model.suppressed()
    if settings.ignore_eos:
        never = [*filter(model.is_end, range(model.n_vocab)), *never]
    return [*settings.logit_bias, *((token, -math.inf) for token in never)]


def _part(name: str, model: Model, settings: SamplingSettings) -> Any:
    of = settings
    match name:
        case "penalties":
            return api.llama_sampler_init_penalties(
                model.n_vocab,
                of.repeat_last_n,
                of.repeat_penalty,
                of.frequency_penalty,
                of.presence_penalty,
            )
        case "dry":
            return _dry(model, settings)
        case "top_n_sigma":
            return api.llama_sampler_init_top_n_sigma(of.top_n_sigma)
        case "top_k":
            return api.llama_sampler_init_top_k(of.top_k)
        case "typ_p":
            return api.llama_sampler_init_typical(of.typical, 0)
        case "top_p":
            return api.llama_sampler_init_top_p(of.top_p, 0)
        case "min_p":
            return api.llama_sampler_init_min_p(of.min_p, 0)
        case "xtc":
            return api.llama_sampler_init_xtc(of.xtc_probability, of.xtc_threshold, 0, of.seed)
        case "temperature":
            return api.llama_sampler_init_temp_ext(
                of.temperature, of.dynatemp_range, of.dynatemp_exp
            )
    raise KeyError(name)


def _dry(model: Model, settings: SamplingSettings) -> Any:
    breakers = [text.encode() for text in settings.dry_sequence_breakers]
    return api.llama_sampler_init_dry(
        model.vocab,
        settings.dry_multiplier,
        settings.dry_base,
        settings.dry_allowed_length,
        settings.dry_penalty_last_n,
        (ctypes.c_char_p * len(breakers))(*breakers),
        len(breakers),
    )

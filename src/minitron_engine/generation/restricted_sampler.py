"""Samplers whose tokens follow a grammar or a JSON schema."""

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_engine.generation.constraint import Constraint, compile_schema
from minitron_engine.generation.sampler import Sampler
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context
from minitron_engine.llama.model import Model

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class SchemaSampler(Sampler):
    """The chain sees only tokens that the schema allows."""

    def __init__(self, chain: int, model: Model, schema: str) -> None:
        super().__init__(chain)
        self._constraint = Constraint(model, compile_schema(schema))
        self._candidates = np.zeros(model.n_vocab, dtype=_CANDIDATE)

    def choose(self, context: Context, output: int) -> int | None:
        """See Sampler."""
        allowed = self._constraint.allowed()
        if not len(allowed):
            return None
        data = self._candidates[: len(allowed)]
        logits = context.output_logits(output)
        data["id"], data["logit"], data["p"] = allowed, logits[allowed], 0.0
        array = _token_array(data)
        api.llama_sampler_apply(self._chain, ctypes.byref(array))
        # a bias may have taken all that the schema leaves
        if array.selected < 0 or np.isneginf(data["logit"][array.selected]):
            return None
        token = int(data["id"][array.selected])
        self._constraint.accept(token)
        api.llama_sampler_accept(self._chain, token)
        return token


class GrammarSampler(Sampler):
    """llama.cpp's sampler of a grammar before the chain."""

    def __init__(self, chain: int, grammar: int, n_vocab: int) -> None:
        super().__init__(chain)
        self._grammar = grammar
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._candidates = np.zeros(n_vocab, dtype=_CANDIDATE)

    def choose(self, context: Context, output: int) -> int | None:
        """See Sampler."""
        # as llama.cpp's tools: the grammar sees one token, and all of them only if it refuses that
        logits = context.output_logits(output)
        chosen = self._chosen(logits, grammar_first=False)
        if chosen is None or not self._allows(chosen):
            chosen = self._chosen(logits, grammar_first=True)
        # accepting a token that the grammar refuses would end the process
        if chosen is None or not self._allows(chosen):
            return None
        api.llama_sampler_accept(self._grammar, chosen)
        api.llama_sampler_accept(self._chain, chosen)
        return chosen

    def _chosen(self, logits: NDArray[np.float32], *, grammar_first: bool) -> int | None:
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
        one = np.zeros(1, dtype=_CANDIDATE)
        one["id"], one["logit"] = token, 1.0
        api.llama_sampler_apply(self._grammar, ctypes.byref(_token_array(one)))
        return not np.isneginf(one["logit"][0])


def _token_array(data: NDArray[Any]) -> Any:
    pointer = data.ctypes.data_as(ctypes.POINTER(api.llama_token_data))
    return api.llama_token_data_array(data=pointer, size=len(data), selected=-1, sorted=False)

"""Embeddings: one vector for a text, pooled from those of its tokens in a context of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import MinitronError, Usage
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import POOLING, ContextSettings
from minitron_engine.llama.tokenization import Tokens


class Embedder:
    """Makes embeddings with one model; made by `open_embedder`. For one thread only.

    n_ctx: the most tokens of a text.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.n_ctx = context.n_batch
        self._batch = Batch(self.n_ctx)

    def checked(self, text: str | list[int]) -> Tokens:
        """The token ids of a text, with BOS and EOS where the model wants them; ids as they are.

        Raises Usage for ids that are not tokens, and for none or more than n_ctx.
        """
        model = self._context.model
        if isinstance(text, str):
            tokens = model.tokenize(text, add_special=True, parse_special=False)
            if model.add_eos and model.eos >= 0:
                # prompts never end in EOS, but these models were trained to sum a text up in it
                tokens = np.append(tokens, np.int32(model.eos))
        elif all(0 <= token < model.n_vocab for token in text):
            tokens = np.array(text, dtype=np.int32)
        else:
            raise Usage(f"the input has a token that is not below {model.n_vocab}")
        if not 0 < len(tokens) <= self.n_ctx:
            raise Usage(f"an input of {len(tokens)} tokens has no embedding: 1 to {self.n_ctx} do")
        return tokens

    def embed(self, tokens: Tokens) -> NDArray[np.float32]:
        """The pooled vector of a text, [n_embd], of length 1."""
        self._context.clear()
        self._batch.clear()
        self._batch.add(tokens, 0, 0, np.ones(len(tokens), dtype=np.bool_))
        self._context.decode(self._batch)
        pointer: Any = api.llama_get_embeddings_seq(self._context.handle, 0)
        if not pointer:
            raise MinitronError("llama.cpp gives no embedding of the text")
        size = api.llama_model_n_embd_out(self._context.model.handle)
        vector = np.ctypeslib.as_array(pointer, shape=(size,)).astype(np.float64)
        length = np.sqrt((vector * vector).sum())
        return (vector / length if length else vector).astype(np.float32)


def pooling_of(model: Model) -> str | None:
    """How a model's own metadata says to pool; None where it says nothing or not to."""
    value = model.metadata(f"{model.metadata('general.architecture')}.pooling_type")
    return next((name for name, number in POOLING.items() if str(number) == value), None)


@contextmanager
def open_embedder(
    model: Model, settings: ContextSettings, n_ctx: int, pooling: str
) -> Iterator[Embedder]:
    """A context for texts of up to n_ctx tokens; the rest is as in `settings`.

    pooling: a name in POOLING. Raises as open_context.
    """
    # a text is one micro batch, as models without causal attention need it
    own = replace(
        settings,
        n_ctx=n_ctx,
        n_batch=n_ctx,
        n_ubatch=n_ctx,
        n_seq=1,
        n_outputs=None,
        pooling=pooling,
    )
    with open_context(model, own) as context:
        yield Embedder(context)

"""One pass over a text with models in memory: a chunk's logits are scored and forgotten."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minitron_convert.gguf_file import Gguf
from minitron_engine.context import Context, Logits, open_context
from minitron_engine.devices import GpuLayers
from minitron_engine.errors import Unsupported
from minitron_engine.model import Model, ModelSettings, Tokens, open_model
from minitron_quant.chunks import ChunkSettings, check_trained_context, decode_chunks
from minitron_quant.measure.divergence import (
    ReferenceChunk,
    TokenScores,
    compare_chunk,
    reference_chunk,
)
from minitron_quant.measure.perplexity import negative_log_likelihood
from minitron_quant.measure.state import State


@dataclass(frozen=True)
class Opened:
    """A model in memory with a context for `chunks`, and the key of its scores."""

    path: Path
    key: str
    model: Model
    context: Context
    chunks: ChunkSettings

    def logits(self, part: Tokens) -> Iterator[Logits]:
        """The scored rows of every chunk, [rows, n_vocab]: views, valid until the next decode."""
        for _, group in decode_chunks(self.context, part, self.chunks, self.chunks.first_output):
            yield from (logits[:-1] for logits in group)


@dataclass(frozen=True)
class Pass:
    """What all parts of a pass share: the chunks of the text, [chunks, n_ctx], threads, results.

    total: how many chunks there are without a limit.
    """

    tokens: Tokens
    total: int
    chunks: ChunkSettings
    pool: ThreadPoolExecutor
    state: State
    _space: list[NDArray[np.float32]] = field(default_factory=list)

    def starts(self, keys: Sequence[str]) -> list[int]:
        """The first chunks of the parts that are not known of every one of the keys."""
        return [
            start
            for start in range(0, len(self.tokens), self.chunks.n_seq)
            if not all(self.known(key, start) for key in keys)
        ]

    def part(self, start: int) -> Tokens:
        """The chunks that are decoded together."""
        return self.tokens[start : start + self.chunks.n_seq]

    def known(self, key: str, start: int) -> bool:
        """Whether a part was scored before."""
        return self.state.has(key, start, len(self.part(start)))

    def targets(self, start: int) -> Tokens:
        """The tokens that the scored rows of a part predict, [chunks, rows]."""
        return self.part(start)[:, self.chunks.first_output + 1 :]

    def refer(self, opened: Opened, start: int) -> list[ReferenceChunk]:
        """Run the reference on a part: what models are compared with, valid until the next part.

        Its own scores are kept.
        """
        targets = self.targets(start)
        base = []
        for number, logits in enumerate(opened.logits(self.part(start))):
            if number == len(self._space):
                self._space.append(np.empty(logits.shape, np.float32))
            space = self._space[number]
            base.append(reference_chunk(self.pool, logits, targets[number], space))
        if not self.known(opened.key, start):
            self.state.put(opened.key, start, [TokenScores.alone(chunk.nll) for chunk in base])
        return base

    def score(
        self, opened: Opened, start: int, base: Sequence[ReferenceChunk] | None = None
    ) -> None:
        """Run a model on a part, unless it is known, and compare it with a reference."""
        if self.known(opened.key, start):
            return
        targets = self.targets(start)
        scores = []
        for number, logits in enumerate(opened.logits(self.part(start))):
            if base is None:
                nll = negative_log_likelihood(self.pool, logits, targets[number])
                scores.append(TokenScores.alone(nll))
            else:
                scores.append(compare_chunk(self.pool, logits, targets[number], base[number]))
        self.state.put(opened.key, start, scores)


def open_for(
    path: Path, key: str, chunks: ChunkSettings, gpu_layers: GpuLayers, stack: ExitStack
) -> Opened:
    """Open a model and a context that takes as many chunks at once as the settings say."""
    context = chunks.context()
    model = stack.enter_context(open_model(ModelSettings(path, gpu_layers, context=context)))
    check_trained_context(model, chunks.n_ctx)
    return Opened(path, key, model, stack.enter_context(open_context(model, context)), chunks)


def other_shape(opened: Opened, key: str, stack: ExitStack) -> Opened:
    """The same model once more, decoding in batches of another size: the sums round differently."""
    chunks = opened.chunks
    # llama.cpp computes at most 512 tokens at once, however large the batch
    size = chunks.n_ctx if chunks.n_seq > 1 else max(1, min(chunks.n_ctx, 512) // 2)
    other = replace(chunks, n_batch=size)
    context = stack.enter_context(open_context(opened.model, other.context()))
    return Opened(opened.path, key, opened.model, context, other)


def check_vocabulary(reference: Gguf, model: Gguf) -> None:
    """Unsupported where the tokens of two models are not the same: nothing can be compared."""
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if reference.metadata.get(key) != model.metadata.get(key):
            raise Unsupported(
                f"{model.path.name} has another vocabulary than the reference: nothing to compare",
                "the reference must be the same model at a higher precision",
            )

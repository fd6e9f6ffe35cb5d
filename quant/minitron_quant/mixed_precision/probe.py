"""Measure the sensitivity of the model to an error in one tensor, tensor by tensor.

One tensor of the full-precision model is replaced by its encoding; the divergence of the model's
predictions over the cost of that encoding is the tensor's sensitivity. Nothing else changes, so few
tokens are enough: each is its own control.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import TYPE_ID, Gguf, TensorInfo, row_bytes
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.llama.weights import Weights, find_weights
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.chunking import ChunkSettings, decode_chunks
from minitron_quant.perplexity.divergence import ReferenceChunk, compare_chunk, reference_chunk
from minitron_quant.quantize.encode import EncodeTask, encode

# The first that a tensor can have. In the middle of what is solved for, because a tensor's weight
# differs by up to a third between types; the others are for rows that its blocks do not fit.
PROBES = tuple(TYPE_ID[name] for name in ("q3_K", "q4_0", "q8_0"))


class Prober:
    """A model whose tensors are replaced one at a time."""

    def __init__(
        self,
        context: Context,
        weights: Weights,
        chunks: ChunkSettings,
        pool: ThreadPoolExecutor,
        importance: Mapping[str, Floats],
    ) -> None:
        self._context = context
        self._weights = weights
        self._chunks = chunks
        self._pool = pool
        self._importance = importance
        self._threads = chunks.threads or default_threads()

    def __contains__(self, name: str) -> bool:
        """Whether the model computes with a tensor of this name."""
        return name in self._weights

    def reference(self, tokens: Tokens) -> list[ReferenceChunk]:
        """The predictions of the unchanged model for chunks, [chunks, n_ctx]."""
        return [
            reference_chunk(self._pool, logits[:-1], targets)
            for logits, targets in self._predictions(tokens)
        ]

    def divergences(
        self,
        shard: Gguf,
        info: TensorInfo,
        ggml_type: int,
        tokens: Tokens,
        reference: Sequence[ReferenceChunk],
    ) -> list[float]:
        """The mean divergence of every chunk with this tensor encoded to a type."""
        original = np.ascontiguousarray(shard.data(info))
        probed = round_trip(
            info, original, ggml_type, self._importance.get(info.name), self._threads
        )
        with self._weights.replaced(info.name, probed, original):
            return self.divergence(tokens, reference)

    def divergence(self, tokens: Tokens, reference: Sequence[ReferenceChunk]) -> list[float]:
        """The mean divergence of every chunk with the present weights."""
        return [
            float(compare_chunk(self._pool, logits[:-1], targets, base).kld.mean())
            for (logits, targets), base in zip(self._predictions(tokens), reference, strict=True)
        ]

    def _predictions(self, tokens: Tokens) -> Iterator[tuple[Floats, Tokens]]:
        first = self._chunks.n_ctx // 2
        for start, group in decode_chunks(self._context, tokens, self._chunks, first):
            for number, logits in enumerate(group):
                yield logits, tokens[start + number, first + 1 :]


@contextmanager
def open_prober(
    model: Model, chunks: ChunkSettings, importance: Mapping[str, Floats]
) -> Iterator[Prober]:
    """A prober of a model; it replaces tensors of one that is loaded replaceable.

    importance: of columns, for the encoder.
    """
    weights = find_weights(model)
    threads = chunks.threads or default_threads()
    with (
        open_context(model, chunks.context()) as context,
        ThreadPoolExecutor(threads, thread_name_prefix="probe") as pool,
    ):
        yield Prober(context, weights, chunks, pool, importance)


def probe_of(costs: Mapping[int, float]) -> int:
    """The type to probe a tensor with, of those that its costs name."""
    return next(
        (ggml_type for ggml_type in PROBES if ggml_type in costs), min(costs, key=costs.__getitem__)
    )


def round_trip(
    info: TensorInfo, data: Bytes, ggml_type: int, importance: Floats | None, threads: int
) -> Bytes:
    """A tensor's bytes encoded to another type and back."""
    blocks = _encoded(EncodeTask(info, data, (ggml_type,), importance), ggml_type, threads)
    there = replace(info, type=ggml_type, nbytes=blocks.nbytes)
    return _encoded(EncodeTask(there, blocks, (info.type,), None), info.type, threads)


def _encoded(task: EncodeTask, ggml_type: int, threads: int) -> Bytes:
    # filled part by part: the output of a model with 256,000 tokens has 1.6 GB
    found = np.empty(task.info.rows * row_bytes(ggml_type, task.info.shape[0]), np.uint8)
    start = 0
    for slab in encode([task], threads):
        part = slab.blocks[ggml_type].reshape(-1)
        found[start : start + part.size] = part
        start += part.size
    return found

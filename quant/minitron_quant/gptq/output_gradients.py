"""Collect output Hessians: the gradients at the outputs of every matrix, by transformers.

The loss is −log p of labels drawn from the model's own predictions, so that Σ gᵀg is the Fisher
information of a matrix's outputs: what a change of them does to the divergence.
"""

import gc
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from minitron_core import stop
from minitron_core.cpu_limits import default_threads
from minitron_core.errors import Unsupported
from minitron_core.gguf import Gguf
from minitron_core.progress import Event, Progress
from minitron_engine.llama.context import open_context
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.loading import open_model
from minitron_quant.array_backend import Floats, best_arrays, to_numpy
from minitron_quant.chunking import ChunkSettings, decode_chunks
from minitron_quant.covariance.gram import GramSums, block_edges
from minitron_quant.gptq.output_hessian import (
    BLOCK,
    HessianOrigin,
    OutputHessian,
    open_output_hessian,
    write_output_hessian,
)
from minitron_quant.gptq.transformers_model import load_model, matrices

_SEED = 0
# Norms of gradients up to so many medians: at the value of the first token, which all others attend
# to, they are a hundred times those of others, and would decide alone.
_CLIP = 2.0
# of logits, as a share of their standard deviation: F16 activations bring a hundredth
_MAX_DIFFERENCE = 0.05


@dataclass(frozen=True)
class GradientSettings:
    """The file to write, and the text: chunks [chunks, n_ctx] as they go into the model.

    threads: None for all.
    """

    path: Path
    origin: HessianOrigin
    chunks: Tokens
    threads: int | None = None

    def collected(self) -> OutputHessian | None:
        """What the file has; None unless it exists and was made from the same."""
        return open_output_hessian(self.path, self.origin)


def collect_output_hessian(
    loading: ModelSettings,
    shard: Gguf,
    settings: GradientSettings,
    progress: Progress,
) -> OutputHessian:
    """Write the file unless it exists, made from the same inputs.

    Raises Unsupported where transformers does not read the model or gives other logits,
    MinitronError for gradients that are not finite.
    """
    found = settings.collected()
    if found is not None:
        return found
    progress(Event("gradients", 0, len(settings.chunks), "chunks"))
    wanted = _llama_logits(loading, settings.chunks[0], settings.threads)
    model = GradientModel(shard, settings.threads or default_threads())
    difference = np.abs(model.logits(settings.chunks[0])[-len(wanted) :] - wanted).mean()
    if not difference <= _MAX_DIFFERENCE * wanted.std():
        raise Unsupported(
            f"transformers computes other logits for {shard.path.name} than llama.cpp",
            "--gptq sequential does without transformers",
        )
    means = model.collect(settings.chunks, progress)
    del model
    gc.collect()  # the model's hooks refer to it
    settings.path.parent.mkdir(parents=True, exist_ok=True)
    return write_output_hessian(settings.path, settings.origin, means)


def _llama_logits(loading: ModelSettings, chunk: Tokens, threads: int | None) -> Floats:
    """Those of the second half of a chunk, [tokens, vocabulary]."""
    n_ctx = len(chunk)
    how = ChunkSettings(n_ctx, n_ctx, threads=threads)
    with (
        open_model(replace(loading, context=how.context())) as model,
        open_context(model, how.context()) as context,
    ):
        _, (logits,) = next(decode_chunks(context, chunk[None], how, how.first_output))
        return np.array(logits)


class GradientModel:
    """A model of transformers, and the sums Σ gᵀg at the outputs of its matrices."""

    def __init__(self, shard: Gguf, threads: int) -> None:
        """Load a GGUF file; Unsupported where transformers does not read it."""
        import torch

        torch.set_num_threads(threads)
        self._torch, self._device = torch, best_arrays().device
        self.model = load_model(shard, self._device)
        # weights need no gradients, but what they compute does
        self.model.get_input_embeddings().register_forward_hook(
            lambda _module, _inputs, output: output.requires_grad_()
        )
        self._edges: dict[str, list[tuple[int, int]]] = {}
        for name, module, order in matrices(self.model, shard):
            self._edges[name] = block_edges(len(order), BLOCK)
            rows = torch.as_tensor(order, device=self._device)
            module.register_forward_hook(self._watch(name, rows))

    def _watch(self, name: str, order: Any) -> Any:
        """A hook that adds the gradients at a module's output."""

        def add(gradient: Any) -> None:
            rows = self._clipped(gradient.reshape(-1, gradient.shape[-1]))
            self._sums.add(name, to_numpy(rows[:, order]))

        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            if output.requires_grad:
                output.register_hook(add)

        return hook

    def _clipped(self, gradients: Any) -> Any:
        """Gradients [tokens, rows] in which no token's norm is far from the median."""
        norms = self._torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
        limit = _CLIP * norms.median()
        return gradients * (limit / norms.clamp_min(1e-30)).clamp_max(1)

    def logits(self, chunk: Tokens) -> Floats:
        """Those of every token of a chunk, [tokens, vocabulary]."""
        with self._torch.no_grad():
            found: Floats = self._predict(chunk).cpu().numpy()
        return found

    def _predict(self, chunk: Tokens) -> Any:
        ids = self._torch.as_tensor(chunk[None].astype(np.int64), device=self._device)
        return self.model(ids, use_cache=False).logits[0]

    def collect(self, chunks: Tokens, progress: Progress) -> dict[str, list[Floats]]:
        """The mean of gᵀg over the tokens, by weight.

        Raises KeyboardInterrupt after a request to stop, MinitronError for gradients that are not
        finite.
        """
        torch = self._torch
        generator = torch.Generator(self._device).manual_seed(_SEED)
        with closing(GramSums(self._edges, best_arrays(), "gradients")) as self._sums:
            for number, chunk in enumerate(chunks):
                stop.check()
                logits = self._predict(chunk)
                shares = torch.softmax(logits.detach(), -1)
                labels = torch.multinomial(shares, 1, generator=generator)[:, 0]
                torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
                progress(Event("gradients", number + 1, len(chunks), "chunks"))
            # sums start again from zero with the next one
            blocks = [total / np.float32(chunks.size) for total in self._sums.take()]
        found = iter(blocks)
        return {name: [next(found) for _ in edges] for name, edges in self._edges.items()}

"""Mixes with GPTQ: the costs of types, and the divergence to predict for a whole mix.

GPTQ fits its text, and at few bits the costs of tensors do not simply add up. So a whole mix is
made with codes that are fitted to the first half of the calibration text, and measured on chunks of
the second.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from minitron_core.gguf import TYPE
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.mixed_precision.error_shares import ErrorShares
from minitron_quant.mixed_precision.probe import Prober, open_prober
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity


def with_gptq(
    sensitivity: Sensitivity, shares: ErrorShares, progress: Progress = ignore
) -> Sensitivity:
    """The same sensitivity, every cost multiplied by the share of the error that GPTQ leaves.

    The share is cross-validated: codes fitted to one half of the text, measured on the other.
    """
    found = dict(sensitivity.tensors)
    for number, (name, tensor) in enumerate(sensitivity.tensors.items()):
        progress(Event("gptq", number, len(found), "tensors", name))
        costs = {
            ggml_type: cost
            * (1.0 if TYPE[ggml_type].block_elements == 1 else shares.of(name, ggml_type))
            for ggml_type, cost in tensor.costs.items()
        }
        shares.keep()
        found[name] = replace(tensor, costs=costs)
    return replace(sensitivity, tensors=found)


def measure_kld(
    loading: ModelSettings, quantized: Path, gptq: GptqEncoder, threads: int | None = None
) -> float:
    """The divergence of a file from the full model, on chunks of the second half of the text.

    Chunk after chunk: the full model's predictions for all of them take gigabytes.
    """
    origin = gptq.covariance.origin
    sample = np.array(origin.sample, np.int32).reshape(-1, 1, origin.context)
    chunks = ChunkSettings(n_ctx=origin.context, n_batch=origin.context, threads=threads)
    made = replace(loading, path=quantized)
    with _opened(loading, chunks) as full, _opened(made, chunks) as ours:
        found = [ours.divergence(tokens, full.reference(tokens)) for tokens in sample]
    return float(np.mean(found))


@contextmanager
def _opened(loading: ModelSettings, chunks: ChunkSettings) -> Iterator[Prober]:
    load = replace(loading, n_ctx=chunks.n_ctx)
    with open_model(load) as loaded, open_prober(loaded, chunks, {}) as prober:
        yield prober

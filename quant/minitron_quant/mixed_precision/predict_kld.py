"""Mixes with GPTQ: the costs of types, and the divergence to predict for a whole mix.

GPTQ fits its text, and at few bits the costs of tensors do not simply add up. So codes of a whole
mix are fitted to the first half of the calibration text, and measured on chunks of the second:
independent ones in the place of the weights of the loaded full model, sequential ones as a file.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from minitron_core.gguf import TYPE
from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.loading import open_model
from minitron_quant.array_backend import Floats
from minitron_quant.chunking import ChunkSettings
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.mixed_precision.error_shares import ErrorShares
from minitron_quant.mixed_precision.probe import Prober, open_prober
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity
from minitron_quant.model_files import open_model_files, tensors_of
from minitron_quant.quantize.recipe import Recipe

_FIRST_HALF = (0,)


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


def predict_kld(
    loading: ModelSettings,
    recipe: Recipe,
    sensitivity: Sensitivity,
    gptq: GptqEncoder,
    importance: Mapping[str, Floats],
    threads: int | None = None,
    progress: Progress = ignore,
) -> float:
    """The predicted divergence of a recipe's file with GPTQ, in nats per token.

    importance: of the columns, by tensor, for the encoders. The measurement does not include the
    rounding of inputs by the kernels; the sensitivity adds it.
    """
    sample, chunks = _second_half(gptq, threads)
    tensors = tensors_of(open_model_files(loading.path))
    load = replace(loading, n_ctx=chunks.n_ctx, writable=True)
    with open_model(load) as loaded, open_prober(loaded, chunks, importance) as prober:
        reference = prober.reference(sample)
        for number, (name, ggml_type) in enumerate(recipe.types):
            progress(Event("prediction", number, len(recipe.types), "tensors", name))
            shard, info = tensors[name]
            if ggml_type != info.type and name in prober:
                prober.replace_tensor(shard, info, ggml_type, gptq.of(name, _FIRST_HALF))
        weights = float(np.mean(prober.divergence(sample, reference)))
    return weights + sum(sensitivity.rounding(name, ggml_type) for name, ggml_type in recipe.types)


def measure_kld(
    loading: ModelSettings, quantized: Path, gptq: GptqEncoder, threads: int | None = None
) -> float:
    """The divergence of a file from the full model, on chunks of the second half of the text."""
    sample, chunks = _second_half(gptq, threads)
    with _opened(loading, chunks) as prober:
        reference = prober.reference(sample)
    with _opened(replace(loading, path=quantized), chunks) as prober:
        return float(np.mean(prober.divergence(sample, reference)))


@contextmanager
def _opened(loading: ModelSettings, chunks: ChunkSettings) -> Iterator[Prober]:
    load = replace(loading, n_ctx=chunks.n_ctx)
    with open_model(load) as loaded, open_prober(loaded, chunks, {}) as prober:
        yield prober


def _second_half(gptq: GptqEncoder, threads: int | None) -> tuple[Tokens, ChunkSettings]:
    origin = gptq.covariance.origin
    sample = np.array(origin.sample, np.int32).reshape(-1, origin.context)
    return sample, ChunkSettings(n_ctx=origin.context, n_batch=origin.context, threads=threads)

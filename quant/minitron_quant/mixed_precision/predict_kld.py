"""What a mix with feedback will diverge: fitted to one half of the text, measured on the other.

Feedback fits the text that it was given, and at few bits the damages of tensors no longer only add
up. So the whole mix is put into the loaded full-precision model, with codes that know only the
first half of the calibration text, and measured on chunks of the second.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minitron_core.progress import Event, Progress, ignore
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.array_backend import Floats
from minitron_quant.chunking import ChunkSettings
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.mixed_precision.probe import open_prober
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity
from minitron_quant.model_files import open_model_files
from minitron_quant.quantize.recipe import Recipe

_FIRST_HALF = (0,)


def predict_kld(
    model: Path,
    recipe: Recipe,
    sensitivity: Sensitivity,
    feedback: GptqEncoder,
    importance: Mapping[str, Floats],
    threads: int | None = None,
    progress: Progress = ignore,
) -> float:
    """The divergence to expect of a recipe's file with feedback, in nats per token.

    importance: what the encoders get, by tensor. What kernels add that round their inputs is not
    in the measurement, and comes from the sensitivity.
    """
    origin = feedback.covariance.origin
    sample = np.array(origin.sample, np.int32).reshape(-1, origin.context)
    chunks = ChunkSettings(n_ctx=origin.context, n_batch=origin.context, threads=threads)
    tensors = {i.name: (shard, i) for shard in open_model_files(model) for i in shard.tensors}
    load = ModelSettings(model, "auto", origin.context, writable=True)
    with open_model(load) as loaded, open_prober(loaded, chunks, importance) as prober:
        reference = prober.reference(sample)
        for number, (name, ggml_type) in enumerate(recipe.types):
            progress(Event("prediction", number, len(recipe.types), "tensors", name))
            shard, info = tensors[name]
            if ggml_type != info.type:
                prober.put(shard, info, ggml_type, feedback.of(name, _FIRST_HALF))
        weights = float(np.mean(prober.compared(sample, reference)))
    return weights + sum(sensitivity.rounding(name, ggml_type) for name, ggml_type in recipe.types)

"""Quantize a model to levels, with GPTQ or without."""

from collections.abc import Iterator
from pathlib import Path

from minitron_core.errors import Usage
from minitron_core.progress import Progress, ignore
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.gptq.sequential_levels import SequentialLevels, SequentialSettings
from minitron_quant.model_files import open_model_files
from minitron_quant.quantize.prepare import ConvertedSource, QuantizeSettings, prepare
from minitron_quant.quantize.run import LevelResult
from minitron_quant.quantize.run import run as run_quantization


def quantize(
    settings: QuantizeSettings,
    *,
    sequential: SequentialSettings | None = None,
    covariance: Path | None = None,
    converted: ConvertedSource | None = None,
    progress: Progress = ignore,
) -> Iterator[LevelResult]:
    """Write the levels of a model and yield each when it is done, in the order of the settings.

    sequential: texts for sequential GPTQ; Unsupported where layers of the model cannot run one by
    one. covariance: the file of `covariance()`, for independent GPTQ. converted: that of
    `open_checkpoint_model`, whose path is then the source of the settings; not with `sequential`.
    All levels are encoded side by side from one read of the source. Finished files are kept when
    they were made from the same; the same call continues a job that was stopped.
    Raises Usage, NotFound, Unsupported, ImatrixNeeded or Damaged before anything is written.
    """
    if sequential is not None and converted is not None:
        raise Usage("sequential GPTQ runs the model, so that it needs a GGUF file", "convert it")
    if sequential is not None:
        return run_quantization(SequentialLevels(settings, sequential).job(settings), progress)
    encoder = None
    if covariance is not None:
        encoder = GptqEncoder(covariance, open_model_files(settings.source))
    return run_quantization(prepare(settings, encoder, converted), progress)

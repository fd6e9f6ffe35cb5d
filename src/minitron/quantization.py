"""Calibrate a model and quantize it: importance matrices, covariances, levels, and mixes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from minitron.loading import load
from minitron_core.errors import Usage
from minitron_core.made_from import inputs_key
from minitron_core.progress import Progress, ignore
from minitron_engine.llama.settings import EVERY_GPU, GpuLayers, ModelSettings, Placement
from minitron_quant.covariance.collect import CovarianceSettings, collect_covariance
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.gptq.sequential_levels import SequentialLevels, SequentialSettings
from minitron_quant.imatrix.collect import (
    Collected,
    CollectSettings,
    ResumePolicy,
    calibrate,
    remove_state,
)
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.imatrix.state import Resume
from minitron_quant.imatrix.synthetic_text import (
    SLOTS,
    SyntheticTextSettings,
    synthetic_text_path,
    write_synthetic_text,
)
from minitron_quant.mixed_precision.build_mix import BuiltMix, MixBuilder, MixSettings
from minitron_quant.mixed_precision.measure import SensitivitySettings, measure_sensitivity
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity
from minitron_quant.model_files import open_model_files
from minitron_quant.quantize.prepare import ConvertedSource, QuantizeSettings, prepare
from minitron_quant.quantize.run import LevelResult
from minitron_quant.quantize.run import run as run_quantization


def imatrix(
    model: Path,
    output: Path,
    settings: CollectSettings,
    *,
    synthetic: SyntheticTextSettings | None = None,
    resume: Resume = "if possible",
    save_every: int | None = None,
    gpu_layers: GpuLayers = "auto",
    placement: Placement = EVERY_GPU,
    file_format: Literal["gguf", "dat"] = "gguf",
    progress: Progress = ignore,
) -> Collected:
    """Collect the importance matrix of a model on texts and write it; the result also holds it.

    synthetic: sample a text from the model, keep it in `{output}.txt`, and calibrate on it after
    the other texts.
    resume: what to do with the state that a stopped call left beside `output`; a call that is
    continued writes the bytes of a single one. save_every: chunks between two saves; None for a
    minute.
    Raises Usage for texts that are too short, MinitronError for inputs that are not finite, and
    as `load` does.
    """
    context = settings.chunks.context()
    if synthetic is not None:
        context = replace(context, n_ctx=max(synthetic.n_ctx * SLOTS, context.n_ctx))
    with load(ModelSettings(model, gpu_layers, placement=placement, context=context)) as loaded:
        if synthetic is not None:
            text = synthetic_text_path(output)
            settings = replace(settings, texts=(*settings.texts, text))
            if resume == "restart" or not text.exists():
                write_synthetic_text(loaded, synthetic, text, progress)
        policy = ResumePolicy(output, resume, save_every)
        collected = calibrate(loaded, settings, progress, policy)
    write_imatrix(output, collected.matrix, file_format)
    remove_state(output)
    return collected


def imatrix_key(model: Sequence[Path], settings: CollectSettings, *more: object) -> str:
    """One hash over everything that decides an importance matrix (made_from.inputs_key).

    model: its files. more: what imatrix() takes besides the settings.
    """
    texts = [path for path in settings.texts if path.is_file()]
    chosen = replace(settings, chunks=replace(settings.chunks, threads=None))
    return inputs_key([*model, *texts], "imatrix", version("minitron"), chosen, *more)


def covariance(
    model: Path,
    output: Path,
    settings: CovarianceSettings,
    *,
    gpu_layers: GpuLayers = "auto",
    placement: Placement = EVERY_GPU,
    progress: Progress = ignore,
) -> Path:
    """Collect the covariance of every input that GPTQ needs, and return its file, `output`.

    A file that was made from the same model and texts is kept; a partial one is continued.
    Raises Usage for texts that are too short, OutOfResources for too little memory or disk.
    """
    context = settings.chunks.context()
    with load(ModelSettings(model, gpu_layers, placement=placement, context=context)) as loaded:
        collect_covariance(loaded, settings, output, progress)
    return output


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


def sensitivity(settings: SensitivitySettings, progress: Progress = ignore) -> Sensitivity:
    """Measure each tensor's sensitivity to quantization error; writes `settings.output`.

    The cost of a type for a tensor is a divergence (KLD) from the full model in nats per token.
    Raises Usage for a text that is too short, Damaged for an importance matrix of another model.
    """
    return measure_sensitivity(settings, progress)


def build_mix(settings: MixSettings, progress: Progress = ignore) -> BuiltMix:
    """Write the mix of types of least predicted divergence for a size, and verify it.

    Raises NotFound or Usage where `settings.sensitivity` is missing or unfinished, Usage for a
    size out of reach.
    """
    return MixBuilder(settings, progress).make()

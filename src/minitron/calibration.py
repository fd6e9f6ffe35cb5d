"""Calibrate a model on texts: importance matrices, and covariances for GPTQ."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from minitron.loading import load
from minitron_core.made_from import inputs_key
from minitron_core.progress import Progress, ignore
from minitron_engine.llama.settings import EVERY_GPU, GpuLayers, ModelSettings, Placement
from minitron_quant.covariance.collect import CovarianceSettings, collect_covariance
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

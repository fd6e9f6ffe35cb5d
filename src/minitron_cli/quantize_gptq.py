"""What --gptq chooses codes with: layer after layer, or each matrix by itself; what that takes."""

from dataclasses import replace
from pathlib import Path

from minitron.calibration import covariance as collect_covariance
from minitron_cli.options.calibration import CalibrationOptions
from minitron_cli.output import Output
from minitron_core.errors import Damaged, NotFound, Unsupported, Usage
from minitron_core.hashing import file_sha256
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_texts
from minitron_quant.covariance.collect import BLOCK, FULL, CovarianceSettings
from minitron_quant.covariance.files import open_covariance
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.gptq.estimate import planned_gptq
from minitron_quant.gptq.forecast import Forecast, forecast_independent
from minitron_quant.gptq.held_out import GptqMethod
from minitron_quant.gptq.sequential_levels import SequentialLevels, SequentialSettings
from minitron_quant.mixed_precision.build_mix import MixSettings
from minitron_quant.model_files import open_model_files
from minitron_quant.quantize.prepare import (
    QuantizeJob,
    QuantizeSettings,
    folder_of,
    model_name,
    prepare,
)
from minitron_quant.streaming.layer_file import reason_not_streamed


def gptq_method(out: Output, settings: QuantizeSettings, gptq: CalibrationOptions) -> GptqMethod:
    """Sequential GPTQ where it is wanted and the model allows it, or else independent."""
    sequential = _sequential(out, settings, gptq)
    if sequential is not None:
        return SequentialLevels(settings, sequential)
    if gptq.covariance is None:
        out.note(str(_independent_plan(settings, gptq)[1]))
    return GptqEncoder(_covariance(out, settings, gptq), open_model_files(settings.source))


def planned_gptq_job(
    out: Output, settings: QuantizeSettings, gptq: CalibrationOptions
) -> tuple[QuantizeJob, Forecast]:
    """What a run would make, and what its codes take; nothing is collected."""
    sequential = _sequential(out, settings, gptq)
    if sequential is not None:
        levels = SequentialLevels(settings, sequential)
        job = levels.job(settings)
        return job, levels.forecast(job.outputs)
    if gptq.covariance is None:
        out.note("the covariance is collected when files are made")
    return _independent_plan(settings, gptq)


def with_gptq(out: Output, settings: MixSettings, gptq: CalibrationOptions) -> MixSettings:
    """A mix with what GPTQ needs, where it is wanted."""
    if not gptq.gptq:
        return settings
    sequential = _sequential(out, settings.quantize, gptq)
    covariance = _covariance(out, settings.quantize, gptq)
    return replace(settings, covariance=covariance, sequential=sequential)


def _sequential(
    out: Output, settings: QuantizeSettings, gptq: CalibrationOptions
) -> SequentialSettings | None:
    """What sequential GPTQ calibrates on; None where codes are independent."""
    if not _is_sequential(out, settings, gptq):
        return None
    if settings.errors is not None:
        raise Usage("--errors measures codes that all levels share: add --gptq independent")
    block = FULL if gptq.effort == "high" else BLOCK
    chunks = ChunkSettings(limit=gptq.calibration_chunks, threads=settings.threads)
    two_sided = gptq.gptq == "two-sided"
    return SequentialSettings(tuple(gptq.text or ()), chunks, block, two_sided=two_sided)


def _is_sequential(out: Output, settings: QuantizeSettings, gptq: CalibrationOptions) -> bool:
    """Whether layers run one by one; says why not where it was left open."""
    if gptq.gptq == "independent" or gptq.covariance is not None:
        return False
    reason = reason_not_streamed(open_model_files(settings.source))
    if reason and gptq.gptq in ("sequential", "two-sided"):
        raise Unsupported(reason, "--gptq independent takes every model")
    if reason:
        out.note(f"{reason}: GPTQ takes each matrix by itself")
    return not reason


def _covariance(out: Output, settings: QuantizeSettings, gptq: CalibrationOptions) -> Path:
    """The path of --covariance, or of the covariance collected on --text."""
    if gptq.covariance is not None:
        return gptq.covariance
    path, collecting = _collecting(settings, gptq)
    path.parent.mkdir(parents=True, exist_ok=True)
    with out.progress() as listener:
        return collect_covariance(
            settings.source,
            path,
            collecting,
            gpu_layers=settings.gpu_layers,
            placement=settings.placement,
            progress=listener,
        )


def _collecting(
    settings: QuantizeSettings, gptq: CalibrationOptions
) -> tuple[Path, CovarianceSettings]:
    full = gptq.effort == "high"
    name = f"{model_name(settings.source)}.covariance{'-full' if full else ''}.gguf"
    chunks = ChunkSettings(limit=gptq.calibration_chunks, threads=settings.threads)
    collecting = CovarianceSettings(tuple(gptq.text or ()), chunks, FULL if full else BLOCK)
    return folder_of(settings) / name, collecting


def _independent_plan(
    settings: QuantizeSettings, gptq: CalibrationOptions
) -> tuple[QuantizeJob, Forecast]:
    path, collecting = _collecting(settings, gptq)
    shards = open_model_files(settings.source)
    if gptq.covariance is not None:
        job = GptqEncoder(gptq.covariance, shards).job(settings)
        return job, forecast_independent(job, collecting, 0)
    with open_model(replace(settings.loading, vocab_only=True)) as model:
        tokens = chunk_texts(model, collecting.texts, collecting.chunks).size
    names = [text.name for text in collecting.texts]
    job = prepare(settings, planned_gptq("independent", names, shards))
    left = 0 if _is_collected(path, collecting, tokens) else tokens
    return job, forecast_independent(job, collecting, left)


def _is_collected(path: Path, collecting: CovarianceSettings, tokens: int) -> bool:
    try:
        origin = open_covariance(path).origin
    except (NotFound, Damaged):  # of another version, too: collecting replaces it
        return False
    texts = tuple(map(file_sha256, collecting.texts))
    return (origin.texts, sum(origin.tokens)) == (texts, tokens)

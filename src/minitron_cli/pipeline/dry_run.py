"""What a job would do: every stage's inputs, outputs, bytes and time, with nothing done."""

from pathlib import Path
from typing import Any

from minitron.level_conversion import header_alone
from minitron_cli.pipeline.checks import planned_conversion
from minitron_cli.pipeline.job_file import Job
from minitron_convert.plan import PlannedFile
from minitron_core.gguf import file_size
from minitron_quant.decode_forecast import decode_seconds
from minitron_quant.levels import parse_levels
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.plan import level_metadata, make_plan
from minitron_quant.quantize.prepare import model_name
from minitron_quant.quantize.summary import estimate_seconds, free_bytes

# bytes of a text per token, for a guess before there is a vocabulary
_BYTES_PER_TOKEN = 4
# what a disk writes per second, for want of knowing it
_WRITTEN_PER_SECOND = 300e6


def forecast(job: Job) -> dict[str, Any]:
    """One entry for every stage, and the disk that all of them need. Errors: as the stages'."""
    with planned_conversion(job) as planned:
        return _stages(job, planned.files[0], planned.bytes)


def _stages(job: Job, file: PlannedFile, converted: int) -> dict[str, Any]:
    name = model_name(file.path)
    levels = _levels(job, file)
    calibration = _tokens(job.calibration.text, job.calibration.chunks, job.calibration.ctx)
    measured = (job.measure.text,) if job.measure.text else ()
    tokens = _tokens(measured, job.measure.chunks, job.measure.ctx) * (1 + len(levels["outputs"]))
    with header_alone(file) as header:
        # logits are read of every chunk's second half, and for an importance matrix of none
        measuring = decode_seconds([header], tokens, 0.5, job.measure.ctx)
        calibrating = decode_seconds([header], calibration, 0, job.calibration.ctx)
    made = {
        "convert": _stage(
            [job.model.source], {file.path.name: converted}, converted / _WRITTEN_PER_SECOND
        ),
        "imatrix": _stage(
            [text.name for text in job.calibration.text],
            {f"{name}.imatrix.gguf": None} if job.calibration.text else {},
            calibrating,
        ),
        "quantize": _stage([file.path.name], levels["outputs"], levels["seconds"]),
        "measure": _stage([text.name for text in measured], {}, measuring),
        **_trials(job),
        "report": _stage([], {f"report.{kind}": None for kind in job.output.report}, 0.0),
    }
    return {**made, "disk": _disk(job.output.directory, made)}


def _trials(job: Job) -> dict[str, Any]:
    """Tasks and speed, where the job has them; how long those take is not foretold."""
    names = [path.name for path in job.tasks.data.values()]
    found = {"tasks": _stage(names, {}, 0.0)} if names else {}
    return found | ({"speed": _stage([], {}, 0.0)} if job.speed.repetitions else {})


def _levels(job: Job, file: PlannedFile) -> dict[str, Any]:
    levels = parse_levels(job.quantize.levels)
    with header_alone(file) as header:
        options = QuantizeOptions(allow_requantize=job.model.requantizes)
        chosen = make_plan([header], levels, options, bool(job.calibration.text))
        sizes = {
            f"{model_name(file.path)}-{each.level.name}.gguf": file_size(
                level_metadata(header, each.level, (), ()), chosen.specs(each)
            )
            for each in chosen.levels
        }
        return {"outputs": sizes, "seconds": estimate_seconds(chosen)}


def _stage(inputs: list[str], outputs: dict[str, int | None], seconds: float) -> dict[str, Any]:
    return {
        "inputs": inputs,
        "outputs": [{"name": name, "bytes": size} for name, size in outputs.items()],
        "estimated_seconds": round(seconds, 1),
    }


def _tokens(texts: tuple[Path, ...], chunks: int | None, ctx: int) -> float:
    given = sum(text.stat().st_size for text in texts if text.is_file()) / _BYTES_PER_TOKEN
    return min(given, chunks * ctx) if chunks else given


def _disk(folder: Path, stages: dict[str, Any]) -> dict[str, int]:
    outputs = [each for stage in stages.values() for each in stage["outputs"]]
    return {
        "bytes": sum(each["bytes"] or 0 for each in outputs),
        "free_bytes": free_bytes(folder),
    }

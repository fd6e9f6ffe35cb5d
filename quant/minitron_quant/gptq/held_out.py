"""GPTQ verified on held-out text: each level is measured beside its plain file.

The plain file has the same types and the same importance, but ggml's own codes. It replaces a file
that does not diverge less.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

from minitron_core.atomic_files import write_whole
from minitron_core.hashing import file_sha256, fingerprint, model_fingerprint
from minitron_core.progress import Progress, ignore
from minitron_quant.levels import Level
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.held_out import (
    KldComparison,
    compare_kld,
    measure_divergence,
    read_stored,
    refuse_calibration_text,
)
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.prepare import QuantizeJob, QuantizeSettings, folder_of, model_name
from minitron_quant.quantize.run import LevelResult, run


class GptqMethod(Protocol):
    """GPTQ of a model, independent (gptq.encoder) or sequential (gptq.sequential_levels)."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The SHA-256 of every calibration text."""

    @property
    def made_from(self) -> str:
        """A hash over all that codes depend on besides the model and the types."""

    def job(self, settings: QuantizeSettings) -> QuantizeJob:
        """A quantization with codes chosen by GPTQ."""

    def plain_job(self, settings: QuantizeSettings) -> QuantizeJob:
        """The same with ggml's own codes, and the importance that the same texts give."""


@dataclass(frozen=True)
class GptqComparison(KldComparison):
    """One level with GPTQ beside its plain file.

    made_from: a hash over the inputs of both files and of the measurement.
    """

    made_from: str
    text: str
    chunks: int


@dataclass(frozen=True)
class VerifiedLevel:
    """A finished level: with GPTQ, or plain where that is at least as good."""

    result: LevelResult
    comparison: GptqComparison


def quantize_verified(
    settings: QuantizeSettings,
    gptq: GptqMethod,
    held_out: MeasureSettings,
    progress: Progress = ignore,
) -> list[VerifiedLevel]:
    """Make levels with GPTQ, measure them beside plain ones, keep the better file of each.

    held_out: text and reference. Comparisons are stored beside the files, and a second call uses
    them. Raises Usage if the text is a calibration text.
    """
    refuse_calibration_text(held_out.text, gptq.texts, "give another text with --held-out")
    made_from = _made_from(settings, gptq, held_out)
    known = {level: _stored(settings, level, made_from) for level in settings.levels}
    results = _make(settings, gptq, known, progress)
    missing = [level for level, comparison in known.items() if comparison is None]
    if missing:
        found = _compare(settings, gptq, held_out, missing, results, made_from, progress)
        for level, comparison in found.items():
            write_whole(_path(settings, level), json.dumps(asdict(comparison), indent=1) + "\n")
        known |= found
        worse: dict[Level, GptqComparison | None] = {
            level: comparison for level, comparison in found.items() if not comparison.better
        }
        results |= _make(replace(settings, replace="always"), gptq, worse, progress)
    return [VerifiedLevel(results[level], each) for level, each in known.items() if each]


def _make(
    settings: QuantizeSettings,
    gptq: GptqMethod,
    known: dict[Level, GptqComparison | None],
    progress: Progress,
) -> dict[Level, LevelResult]:
    """Every level as its comparison says; with GPTQ where there is none yet."""
    made: dict[Level, LevelResult] = {}
    for better, prepared in ((True, gptq.job), (False, gptq.plain_job)):
        levels = tuple(
            level for level, each in known.items() if (each is None or each.better) == better
        )
        if levels:
            job = prepared(replace(settings, levels=levels))
            made |= dict(zip(levels, run(job, progress), strict=True))
    return made


def _compare(
    settings: QuantizeSettings,
    gptq: GptqMethod,
    held_out: MeasureSettings,
    levels: Sequence[Level],
    results: dict[Level, LevelResult],
    made_from: str,
    progress: Progress,
) -> dict[Level, GptqComparison]:
    """Make the plain files for a while and measure the levels beside them."""
    scratch = folder_of(settings) / f".{model_name(settings.source)}.plain"
    plain = replace(
        settings, levels=tuple(levels), directory=scratch, output=None, replace="always"
    )
    try:
        job = gptq.plain_job(plain)
        files = [result.path for result in run(job, progress)]
        files += [results[level].path for level in levels]
        rows = measure_divergence(held_out, files, progress)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    pairs = zip(levels, rows[len(levels) :], rows[: len(levels)], strict=True)
    return {
        level: GptqComparison(
            **vars(compare_kld(ours, baseline)),
            made_from=made_from,
            text=held_out.text.name,
            chunks=ours.chunks,
        )
        for level, ours, baseline in pairs
    }


def _made_from(settings: QuantizeSettings, gptq: GptqMethod, held_out: MeasureSettings) -> str:
    given = (settings.imatrix, held_out.text)
    hashes = [file_sha256(path) if path else "" for path in given]
    model = model_fingerprint(open_model_files(settings.source))
    how = repr((settings.options, settings.include, settings.exclude, held_out.chunks.limit))
    return fingerprint(model, gptq.made_from, *hashes, how)


def _path(settings: QuantizeSettings, level: Level) -> Path:
    name = f"{model_name(settings.source)}-{level.name}.gptq.json"
    return folder_of(settings) / name


def _stored(settings: QuantizeSettings, level: Level, made_from: str) -> GptqComparison | None:
    """The comparison of an earlier run, if its inputs are the same."""
    found = read_stored(_path(settings, level), GptqComparison.from_document)
    return found if found and found.made_from == made_from else None

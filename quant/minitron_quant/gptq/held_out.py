"""GPTQ verified on held-out text: each level is measured beside its plain file.

The plain file has the same types and the same importance, but ggml's own codes. It replaces a file
that does not diverge less.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Usage
from minitron_core.hashing import file_sha256, fingerprint, model_fingerprint
from minitron_core.progress import Progress, ignore
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.levels import Level
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.measures import Row
from minitron_quant.perplexity.paired import Difference, paired_difference
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure
from minitron_quant.quantize.prepare import QuantizeSettings, folder_of, model_name, prepare
from minitron_quant.quantize.run import LevelResult, run


@dataclass(frozen=True)
class Proof:
    """One level's divergence from the full model, in nats per token, plain and with GPTQ.

    difference: GPTQ less plain, with its 95 % interval over the same chunks. made_from: a hash over
    the inputs of both files and of the measurement.
    """

    made_from: str
    text: str
    chunks: int
    plain: float
    gptq: float
    difference: Difference

    @property
    def better(self) -> bool:
        """Whether GPTQ diverges less."""
        return self.difference.mean < 0

    @property
    def change_pct(self) -> float:
        """The difference in percent of the plain divergence."""
        return 100 * self.difference.mean / self.plain


@dataclass(frozen=True)
class Proved:
    """A finished level: with GPTQ, or plain where the proof says so."""

    result: LevelResult
    proof: Proof


def make_proved(
    settings: QuantizeSettings,
    gptq: GptqEncoder,
    held_out: MeasureSettings,
    progress: Progress = ignore,
) -> list[Proved]:
    """Make levels with GPTQ, measure them beside plain ones, keep the better file of each.

    held_out: text and reference. Proofs are stored beside the files, and a second call uses them.
    Raises Usage if the text is the calibration text.
    """
    if file_sha256(held_out.text) in gptq.covariance.origin.texts:
        raise Usage(
            f"{held_out.text.name} is the calibration text itself, which proves nothing",
            "give another text with --held-out",
        )
    made_from = _made_from(settings, gptq, held_out)
    proofs = {level: _stored(settings, level, made_from) for level in settings.levels}
    results = _make(settings, gptq, proofs, progress)
    missing = [level for level, proof in proofs.items() if proof is None]
    if missing:
        found = _measure(settings, gptq, held_out, missing, results, made_from, progress)
        for level, proof in found.items():
            write_whole(_path(settings, level), json.dumps(asdict(proof), indent=1) + "\n")
        proofs |= found
        worse: dict[Level, Proof | None] = {k: p for k, p in found.items() if not p.better}
        results |= _make(replace(settings, replace="always"), gptq, worse, progress)
    return [Proved(results[level], proof) for level, proof in proofs.items() if proof]


def _make(
    settings: QuantizeSettings,
    gptq: GptqEncoder,
    proofs: dict[Level, Proof | None],
    progress: Progress,
) -> dict[Level, LevelResult]:
    """Every level as its proof says; with GPTQ where there is no proof yet."""
    made: dict[Level, LevelResult] = {}
    for better, refiner in ((True, gptq), (False, gptq.without_gptq())):
        levels = tuple(
            level for level, proof in proofs.items() if (not proof or proof.better) == better
        )
        if levels:
            job = prepare(replace(settings, levels=levels), refiner)
            made |= dict(zip(levels, run(job, progress), strict=True))
    return made


def _measure(
    settings: QuantizeSettings,
    gptq: GptqEncoder,
    held_out: MeasureSettings,
    levels: Sequence[Level],
    results: dict[Level, LevelResult],
    made_from: str,
    progress: Progress,
) -> dict[Level, Proof]:
    scratch = folder_of(settings) / f".{model_name(settings.source)}.plain"
    plain = replace(
        settings,
        levels=tuple(levels),
        directory=scratch,
        output=None,
        replace="always",
    )
    try:
        files = [result.path for result in run(prepare(plain, gptq.without_gptq()), progress)]
        ours = [results[level].path for level in levels]
        rows = list(measure(replace(held_out, models=(*files, *ours)), progress))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    compared = [row for row in rows if row.chunk_kld]
    pairs = zip(compared[: len(levels)], compared[len(levels) :], strict=True)
    name = held_out.text.name
    return {
        level: _proof(made_from, name, *pair) for level, pair in zip(levels, pairs, strict=True)
    }


def _proof(made_from: str, text: str, plain: Row, ours: Row) -> Proof:
    before, after = (sum(row.chunk_kld) / row.chunks for row in (plain, ours))
    difference = paired_difference(ours.chunk_kld, plain.chunk_kld)
    return Proof(made_from, text, ours.chunks, before, after, difference)


def _made_from(settings: QuantizeSettings, gptq: GptqEncoder, held_out: MeasureSettings) -> str:
    given = (gptq.file, settings.imatrix, held_out.text)
    hashes = [file_sha256(path) if path else "" for path in given]
    model = model_fingerprint(open_model_files(settings.source))
    how = repr((settings.options, settings.include, settings.exclude, held_out.chunks.limit))
    return fingerprint(model, *hashes, how)


def _path(settings: QuantizeSettings, level: Level) -> Path:
    name = f"{model_name(settings.source)}-{level.name}.gptq.json"
    return folder_of(settings) / name


def _stored(settings: QuantizeSettings, level: Level, made_from: str) -> Proof | None:
    """The proof of an earlier run, if it is of the same."""
    try:
        document: dict[str, Any] = json.loads(_path(settings, level).read_text())
        difference = Difference(**document.pop("difference"))
        proof = Proof(**document, difference=difference)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return proof if proof.made_from == made_from else None

"""Build a mix for a size: solve, write, verify on held-out text; a better preset replaces it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Damaged, NotFound, Usage
from minitron_core.gguf import KeyValue, open_gguf
from minitron_core.hashing import file_sha256
from minitron_core.progress import Progress, ignore
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.levels import LEVELS, Level, level_named
from minitron_quant.mixed_precision.held_out import Verification, verify_mix
from minitron_quant.mixed_precision.measure import check_model
from minitron_quant.mixed_precision.predict_kld import predict_kld, with_gptq
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity, read_sensitivity
from minitron_quant.mixed_precision.size_solver import Restrictions, SizeSolver
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.held_out import (
    mean_kld,
    measure_divergence,
    read_stored,
    refuse_calibration_text,
)
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.importance import load_importance
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.prepare import QuantizeSettings, folder_of, model_name, prepare
from minitron_quant.quantize.recipe import PREDICTED_KEY, RECIPE_KEY, Recipe
from minitron_quant.quantize.run import LevelResult, discard, run

_CORRECTIONS = 2
# a divergence this near below the one asked for needs no further correction
_NEAR = 0.9


@dataclass(frozen=True)
class MixTarget:
    """What a mix is built for; exactly one is given. size: bytes of the file. bits: per weight.

    like: as large as this level's file. max_kld: as small as this divergence allows.
    """

    size: int | None = None
    bits: float | None = None
    like: Level | None = None
    max_kld: float | None = None

    @property
    def option(self) -> list[str]:
        """The option of `minitron quantize` for it."""
        if self.like is not None:
            return ["--like", self.like.name]
        if self.bits is not None:
            return ["--bpw", f"{self.bits:g}"]
        return ["--size", f"{self.size}"] if self.size else ["--max-kld", f"{self.max_kld:g}"]


@dataclass(frozen=True)
class MixSettings:
    """How to build a mix. quantize: where files go and how; its levels are not used.

    target: what the mix is built for. covariance: file whose codes GPTQ chooses. held_out: text,
    chunks and device of the verification; None skips it.
    """

    quantize: QuantizeSettings
    sensitivity: Path
    target: MixTarget
    restrictions: Restrictions = Restrictions()
    held_out: MeasureSettings | None = None
    covariance: Path | None = None


@dataclass(frozen=True)
class BuiltMix:
    """A finished mix. kept: the preset that replaced it, because it was no better.

    met: whether max_kld was reached, as far as it was measured.
    """

    recipe: Recipe
    result: LevelResult
    verification: Verification | None = None
    kept: LevelResult | None = None
    met: bool = True

    @property
    def recipe_file(self) -> Path:
        """The recipe as llama-quantize reads it with --tensor-type-file."""
        return sibling(self.result.path, "types.txt")


def sibling(path: Path, ending: str) -> Path:
    """The path of a file that belongs to a .gguf file."""
    return path.with_name(f"{path.name.removesuffix('.gguf')}.{ending}")


class MixBuilder:
    """Builds mixes of one model."""

    def __init__(self, settings: MixSettings, progress: Progress = ignore) -> None:
        """Raises Damaged, NotFound or Usage if model, sensitivity, matrix and text do not match."""
        self._settings = settings
        self._progress = progress
        source = settings.quantize.source
        self.sensitivity = read_sensitivity(settings.sensitivity)
        check_model(self.sensitivity, open_model_files(source), settings.sensitivity)
        if not self.sensitivity.chunks:
            raise Usage(
                f"{settings.sensitivity} has not measured every tensor yet",
                "finish it: minitron sensitivity MODEL -f TEXT --resume",
            )
        if settings.held_out is not None:
            refuse_calibration_text(
                settings.held_out.text,
                (self.sensitivity.text["sha256"],),
                "give another text with --held-out, or --no-verify",
            )
        self.imatrix = find_imatrix(settings, self.sensitivity)
        self._quantize = replace(settings.quantize, imatrix=self.imatrix, output=None)
        keys: tuple[KeyValue, ...] = ()
        self._gptq: GptqEncoder | None = None
        if settings.covariance is not None:
            self._gptq = GptqEncoder(settings.covariance, open_model_files(source))
            self.sensitivity = with_gptq(self.sensitivity, self._gptq, progress)
            keys = self._gptq.keys
        self.solver = SizeSolver(
            source, self.sensitivity, self.imatrix, settings.restrictions, keys
        )

    def solve(self, target: MixTarget | None = None) -> Recipe:
        """The recipe for the settings' target, or for another one, by predicted divergence."""
        target = target or self._settings.target
        budget = self._budget(target)
        if budget is not None:
            return self.solver.for_size(budget)
        if target.bits is not None:
            return self.solver.for_bits(target.bits)
        return self.solver.for_divergence(target.max_kld or 0.0)

    def _budget(self, target: MixTarget) -> int | None:
        """The bytes of the target, if it is a size."""
        if target.like is not None:
            return self._preset_sizes((target.like,))[target.like]
        return target.size

    def make(self) -> BuiltMix:
        """Solve, write and verify."""
        if self._settings.target.max_kld is not None and self._settings.held_out is not None:
            made = self._correct(self._settings.target.max_kld, self._settings.held_out)
        else:
            recipe = self._predicted(self.solve())
            made = BuiltMix(recipe, self._write(recipe))
        write_whole(made.recipe_file, made.recipe.text)
        held = self._settings.held_out
        return made if held is None else self._verify(made, held)

    def _predicted(self, recipe: Recipe) -> Recipe:
        """The recipe with the divergence that is predicted for its file, where GPTQ chooses codes.

        A file of the same recipe that exists already holds it.
        """
        if self._gptq is None:
            return recipe
        quantize = self._quantize
        path = folder_of(quantize) / f"{model_name(quantize.source)}-{recipe.name}.gguf"
        if quantize.replace != "always" and path.is_file():
            made = open_gguf(path)
            if made.get(RECIPE_KEY) == recipe.text:
                return replace(recipe, predicted=float(made.get(PREDICTED_KEY)))
        importance = load_importance(self.imatrix).weights
        given = recipe, self.sensitivity, self._gptq, importance
        predicted = predict_kld(quantize.loading, *given, quantize.threads, self._progress)
        return replace(recipe, predicted=predicted)

    def _write(self, recipe: Recipe) -> LevelResult:
        return self._run(replace(self._quantize, levels=(recipe,)), self._gptq)

    def _run(self, settings: QuantizeSettings, gptq: GptqEncoder | None = None) -> LevelResult:
        """Make the only level of the settings."""
        (result,) = run(prepare(settings, gptq), self._progress)
        return result

    def _correct(self, most: float, held: MeasureSettings) -> BuiltMix:
        """Solve again, the prediction corrected by the measured divergence."""
        tried: dict[str, tuple[BuiltMix, float]] = {}
        target = most
        for _ in range(1 + _CORRECTIONS):
            recipe = self.solver.for_divergence(target)
            if recipe.name in tried:
                break
            result = self._write(recipe)
            (row,) = measure_divergence(held, [result.path], self._progress)
            kld = mean_kld(row)
            tried[recipe.name] = BuiltMix(recipe, result, met=kld <= most), kld
            if _NEAR * most <= kld <= most:
                break
            # a little lower than the ratio says: landing above would need one more
            target = recipe.predicted * most / kld * (1 + _NEAR) / 2
        met = [made for made, _ in tried.values() if made.met]
        if met:
            best = min(met, key=lambda made: made.result.bytes)
        else:
            best = min(tried.values(), key=lambda found: found[1])[0]
        discard(self._quantize, [name for name in tried if name != best.recipe.name])
        return best

    def _verify(self, made: BuiltMix, held: MeasureSettings) -> BuiltMix:
        stored = sibling(made.result.path, "verification.json")
        verification = _stored(stored, made.result, held)
        if verification is None:
            verification = self._measure_baselines(made.result, held)
            write_whole(stored, json.dumps(verification.document(), indent=1) + "\n")
        if verification.better or verification.preset is None:
            return replace(made, verification=verification)
        preset = self._as_preset(
            (level_named(verification.preset.level),), self._quantize.directory
        )
        kept = self._run(preset)
        discard(self._quantize, [made.recipe.name])
        made.recipe_file.unlink(missing_ok=True)
        return replace(made, verification=verification, kept=kept)

    def _measure_baselines(self, solved: LevelResult, held: MeasureSettings) -> Verification:
        """Make the preset and the random mix, measure, and remove both."""
        scratch = sibling(solved.path, "verification")
        sizes = self._preset_sizes(LEVELS)
        budget = self._budget(self._settings.target) or solved.bytes
        smaller = [level for level, size in sizes.items() if size <= budget]
        random = self.solver.random(budget)
        try:
            settings = replace(self._quantize, directory=scratch, replace="always")
            drawn = self._run(replace(settings, levels=(random,)), self._gptq)
            preset = None
            if smaller:
                nearest = max(smaller, key=sizes.__getitem__)
                preset = self._run(self._as_preset((nearest,), scratch))
            return verify_mix(held, solved, preset, drawn, self._progress)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _preset_sizes(self, levels: Sequence[Level]) -> dict[Level, int]:
        """The bytes of the files of llama.cpp's own levels."""
        job = prepare(self._as_preset(levels, None))
        return {output.planned.level: output.bytes for output in job.outputs}

    def _as_preset(self, levels: Sequence[Level], directory: Path | None) -> QuantizeSettings:
        """Levels as a user would make them: with the importance matrix given, if any."""
        given = self._settings.quantize.imatrix or self.imatrix
        return replace(
            self._quantize,
            levels=tuple(levels),
            directory=directory,
            imatrix=given,
            replace="outdated",
            options=QuantizeOptions(),
        )


def find_imatrix(settings: MixSettings, sensitivity: Sensitivity) -> Path:
    """The completed importance matrix of the sensitivity: beside it, or the one given.

    Raises Damaged if another one was given, NotFound if there is none.
    """
    given, used = settings.quantize.imatrix, sensitivity.imatrix
    if given is not None and not sensitivity.used_imatrix(given):
        raise Damaged(
            f"{settings.sensitivity.name} was not measured with {given.name}",
            "measure with it: minitron sensitivity MODEL -f TEXT --imatrix FILE",
        )
    for path in (settings.sensitivity.with_name(used.get("name", "")), given):
        if path is not None and path.is_file() and file_sha256(path) == used["sha256"]:
            return path
    raise NotFound(
        f"{used.get('name')} belongs to {settings.sensitivity} and is not beside it",
        "put it back there, or measure again: minitron sensitivity MODEL -f TEXT",
    )


def _stored(path: Path, result: LevelResult, held: MeasureSettings) -> Verification | None:
    """The verification of an earlier run, if it was of this file on this text."""
    verification = read_stored(path, Verification.from_document)
    if verification is None:
        return None
    same = verification.file_sha256 == result.sha256 and verification.text_sha256 == file_sha256(
        held.text
    )
    return verification if same and held.chunks.limit in (None, verification.chunks) else None

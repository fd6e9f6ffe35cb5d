"""Build a mix for a size: solve, write, verify on held-out text; a better preset replaces it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Damaged, NotFound, Usage
from minitron_core.gguf import DEFAULT_ALIGNMENT
from minitron_core.hashing import file_sha256, fingerprint
from minitron_core.progress import Event, Progress, ignore
from minitron_quant.gptq.estimate import Method
from minitron_quant.gptq.sequential_levels import SequentialSettings
from minitron_quant.levels import Level
from minitron_quant.mixed_precision.alternatives import Alternatives
from minitron_quant.mixed_precision.held_out import Other, Verification, read_verification
from minitron_quant.mixed_precision.measure import check_model
from minitron_quant.mixed_precision.mix_codes import MixCodes
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity, read_sensitivity
from minitron_quant.mixed_precision.size_solver import Restrictions, SizeSolver
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.held_out import (
    mean_kld,
    measure_divergence,
    refuse_calibration_text,
)
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.prepare import QuantizeJob, QuantizeSettings, count_types, prepare
from minitron_quant.quantize.recipe import Recipe
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

    target: what the mix is built for. covariance: for GPTQ, of the inputs. sequential: the text of
    the covariance, for sequential codes instead of independent ones. held_out: text, chunks and
    device of the verification; None skips it.
    """

    quantize: QuantizeSettings
    sensitivity: Path
    target: MixTarget
    restrictions: Restrictions = Restrictions()
    held_out: MeasureSettings | None = None
    covariance: Path | None = None
    sequential: SequentialSettings | None = None


@dataclass(frozen=True)
class BuiltMix:
    """A finished mix. kept: the file that replaced it, because the mix was not better.

    gptq: how the codes of the file that is there were chosen; None for ggml's. met: whether
    max_kld was reached, as far as it was measured.
    """

    recipe: Recipe
    result: LevelResult
    verification: Verification | None = None
    kept: LevelResult | None = None
    gptq: Method | None = None
    met: bool = True

    @property
    def recipe_file(self) -> Path:
        """The recipe as llama-quantize reads it with --tensor-type-file."""
        return sibling((self.kept or self.result).path, "types.txt")


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
        self.imatrix = find_imatrix(settings, self.sensitivity)
        self._quantize = replace(settings.quantize, imatrix=self.imatrix, output=None)
        self._gptq: MixCodes | None = None
        if settings.covariance is None and settings.sequential is not None:
            raise Usage("a mix with sequential GPTQ is solved for a covariance", "collect one")
        if settings.covariance is not None:
            given = settings.covariance, settings.sequential
            self._gptq = MixCodes(self._quantize, *given, progress)
        given_imatrix = settings.quantize.imatrix or self.imatrix
        self._alternatives = Alternatives(self._quantize, given_imatrix, self._gptq, progress)
        if settings.held_out is not None:
            refuse_calibration_text(
                settings.held_out.text,
                (self.sensitivity.text["sha256"], *(self._gptq.texts if self._gptq else ())),
                "give another text with --held-out, or --no-verify",
            )
        if self._gptq is not None:
            self.sensitivity = self._gptq.priced(self.sensitivity)
        keys = self._gptq.keys if self._gptq else ()
        self.solver = SizeSolver(
            source, self.sensitivity, self.imatrix, settings.restrictions, keys
        )

    def solve(self, target: MixTarget | None = None) -> Recipe:
        """The recipe for the settings' target, or for another one, by predicted divergence."""
        target = target or self._settings.target
        budget = self._budget(target)
        if budget is not None:
            sequential = self._gptq is not None and self._gptq.method != "independent"
            # the same mix with independent codes, which may replace it, has a longer name
            return self.solver.for_size(budget - DEFAULT_ALIGNMENT if sequential else budget)
        if target.bits is not None:
            return self.solver.for_bits(target.bits)
        return self.solver.for_divergence(target.max_kld or 0.0)

    def _budget(self, target: MixTarget) -> int | None:
        """The bytes of the target, if it is a size."""
        if target.like is not None:
            return self._alternatives.preset_sizes((target.like,))[target.like]
        return target.size

    def make(self) -> BuiltMix:
        """Solve, write and verify."""
        for note in self._gptq.notes if self._gptq else ():
            self._progress(Event("gptq", note=note))
        most, held = self._settings.target.max_kld, self._settings.held_out
        if most is not None and held is not None:
            made = self._correct(most, held)
        else:
            recipe = self._predicted(self.solve())
            known = self._replaced_before(recipe, held) if held else None
            if known is not None:
                return known
            made = self._made(recipe, self._write(recipe))
        write_whole(made.recipe_file, made.recipe.text)
        return made if held is None else self._verify(made, held)

    def _made(self, recipe: Recipe, result: LevelResult, *, met: bool = True) -> BuiltMix:
        method = self._gptq.method if self._gptq else None
        return BuiltMix(recipe, result, gptq=method, met=met)

    def _predicted(self, recipe: Recipe) -> Recipe:
        """The recipe with the divergence that is predicted for its file with its codes.

        For a divergence the smallest recipe that reaches it so.
        """
        ratio, most = self._ratio(recipe), self._settings.target.max_kld
        if most is not None and ratio != 1:
            recipe = self.solver.for_divergence(most / ratio)
        return _scaled(recipe, ratio)

    def _ratio(self, recipe: Recipe) -> float:
        """The divergence of a recipe with GPTQ's codes over the sum of its tensors' costs."""
        if self._gptq is None or recipe.predicted <= 0:
            return 1.0
        return self._gptq.predict(recipe, self.sensitivity) / recipe.predicted

    def _job(self, recipe: Recipe) -> QuantizeJob:
        settings = replace(self._quantize, levels=(recipe,))
        return prepare(settings) if self._gptq is None else self._gptq.job(settings)

    def _write(self, recipe: Recipe) -> LevelResult:
        (result,) = run(self._job(recipe), self._progress)
        return result

    def _made_from(self, job: QuantizeJob) -> str:
        """A hash over all that the file of a job with one mix depends on."""
        codes = self._gptq.made_from if self._gptq else ""
        inputs = (self.sensitivity.model["sha256"], self.sensitivity.imatrix["sha256"], codes)
        return fingerprint(job.outputs[0].recipe, *inputs)

    def _correct(self, most: float, held: MeasureSettings) -> BuiltMix:
        """Solve again, the prediction corrected by the measured divergence."""
        tried: dict[str, tuple[BuiltMix, float]] = {}
        ratio = self._ratio(self.solver.for_divergence(most))
        target = most / ratio
        for _ in range(1 + _CORRECTIONS):
            recipe = self.solver.for_divergence(target)
            if recipe.name in tried:
                break
            scaled = _scaled(recipe, ratio)
            result = self._write(scaled)
            (row,) = measure_divergence(held, [result.path], self._progress)
            kld = mean_kld(row)
            tried[recipe.name] = self._made(scaled, result, met=kld <= most), kld
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
        verification = read_verification(stored, held)
        if verification is None or verification.file_sha256 != made.result.sha256:
            solved, scratch = (made.recipe, made.result), sibling(made.result.path, "verification")
            budget = self._budget(self._settings.target) or made.result.bytes
            measured = self._alternatives.measure(solved, budget, self.solver, held, scratch)
            made_from = self._made_from(self._job(made.recipe))
            verification = replace(measured, made_from=made_from)
            write_whole(stored, json.dumps(verification.document(), indent=1) + "\n")
        made = replace(made, verification=verification)
        other = verification.replaced_by
        return made if other is None else self._replaced(made, other)

    def _replaced_before(self, recipe: Recipe, held: MeasureSettings) -> BuiltMix | None:
        """What an earlier call kept in the place of a mix, which need not be made again."""
        job = self._job(recipe)
        (output,) = job.outputs
        verification = read_verification(sibling(output.path, "verification.json"), held)
        other = verification.replaced_by if verification else None
        if verification is None or other is None or self._quantize.replace == "always":
            return None
        if verification.made_from != self._made_from(job):
            return None
        bits, types = job.bits_per_weight(output), count_types(output.planned)
        sha256 = verification.file_sha256
        result = LevelResult(output.name, output.path, output.bytes, bits, types, sha256, 0, True)
        return self._replaced(replace(self._made(recipe, result), verification=verification), other)

    def _replaced(self, made: BuiltMix, other: Other) -> BuiltMix:
        """The better file in the place of the mix."""
        assert made.verification is not None  # it says which is better
        if other == "independent" and self._gptq is not None:
            predicted = self._gptq.predict(made.recipe, self.sensitivity, other)
            name = f"{made.recipe.name}-{other}"
            recipe = replace(made.recipe, name=name, predicted=predicted)
            kept = self._alternatives.independent(recipe, self._gptq)
            found = replace(made, recipe=recipe, kept=kept, gptq=other)
            write_whole(found.recipe_file, recipe.text)
        else:
            kept = self._alternatives.preset(made.verification.others[other].level)
            found = replace(made, kept=kept, gptq=None)
        discard(self._quantize, [made.recipe.name])
        made.recipe_file.unlink(missing_ok=True)
        return found


def _scaled(recipe: Recipe, ratio: float) -> Recipe:
    return replace(recipe, predicted=recipe.predicted * ratio)


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

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
from minitron_quant.mixed_precision.gptq_costs import with_gptq
from minitron_quant.mixed_precision.held_out import Proof, divergence_rows, prove
from minitron_quant.mixed_precision.measure import check_model
from minitron_quant.mixed_precision.predict_kld import predict_kld
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity, read_sensitivity
from minitron_quant.mixed_precision.size_solver import Restrictions, SizeSolver
from minitron_quant.model_files import open_model_files
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
    """What a file is to be; exactly one is given. size: bytes of the file; bits: per weight.

    like: as large as this level's file. max_kld: as small as this divergence allows.
    """

    size: int | None = None
    bits: float | None = None
    like: Level | None = None
    max_kld: float | None = None

    @property
    def option(self) -> list[str]:
        """The option of `minitron quantize` that asks for it."""
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
    wanted: MixTarget
    restrictions: Restrictions = Restrictions()
    held_out: MeasureSettings | None = None
    covariance: Path | None = None


@dataclass(frozen=True)
class BuiltMix:
    """What was made. kept: the preset instead of the solved file, which was no better.

    met: whether a divergence that was asked for was reached, as far as it was measured.
    """

    recipe: Recipe
    result: LevelResult
    proof: Proof | None = None
    kept: LevelResult | None = None
    met: bool = True

    @property
    def recipe_file(self) -> Path:
        """The recipe as llama-quantize reads it with --tensor-type-file."""
        return beside(self.result.path, "types.txt")


def beside(path: Path, ending: str) -> Path:
    """A file that belongs to a .gguf file."""
    return path.with_name(f"{path.name.removesuffix('.gguf')}.{ending}")


class MixBuilder:
    """Solves and writes files of one model."""

    def __init__(self, settings: MixSettings, progress: Progress = ignore) -> None:
        """Check that model, sensitivity, importance matrix and text belong together."""
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
        held = settings.held_out
        if held is not None and file_sha256(held.text) == self.sensitivity.text["sha256"]:
            raise Usage(
                f"{held.text.name} is the calibration text itself: it proves nothing",
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
        self.dial = SizeSolver(source, self.sensitivity, self.imatrix, settings.restrictions, keys)

    def solve(self, wanted: MixTarget | None = None) -> Recipe:
        """The recipe that the settings want, or another one, by what is predicted."""
        wanted = wanted or self._settings.wanted
        budget = self._budget(wanted)
        if budget is not None:
            return self.dial.for_size(budget)
        if wanted.bits is not None:
            return self.dial.for_bits(wanted.bits)
        return self.dial.for_divergence(wanted.max_kld or 0.0)

    def _budget(self, wanted: MixTarget) -> int | None:
        """The bytes that were asked for, if a size was."""
        if wanted.like is not None:
            return self._preset_sizes((wanted.like,))[wanted.like]
        return wanted.size

    def make(self) -> BuiltMix:
        """Solve, write and prove."""
        if self._settings.wanted.max_kld is not None and self._settings.held_out is not None:
            made = self._correct(self._settings.wanted.max_kld, self._settings.held_out)
        else:
            recipe = self._predicted(self.solve())
            made = BuiltMix(recipe, self._write(recipe))
        write_whole(made.recipe_file, made.recipe.text)
        held = self._settings.held_out
        return made if held is None else self._prove(made, held)

    def _predicted(self, recipe: Recipe) -> Recipe:
        """The recipe with what its file is expected to diverge, where feedback chooses the codes.

        A file of the same recipe that is there already says it.
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
        predicted = predict_kld(quantize.source, *given, quantize.threads, self._progress)
        return replace(recipe, predicted=predicted)

    def _write(self, recipe: Recipe) -> LevelResult:
        return self._run(replace(self._quantize, levels=(recipe,)), self._gptq)

    def _run(self, settings: QuantizeSettings, gptq: GptqEncoder | None = None) -> LevelResult:
        """Make the only level of the settings."""
        (result,) = run(prepare(settings, gptq), self._progress)
        return result

    def _correct(self, most: float, held: MeasureSettings) -> BuiltMix:
        """Solve again with what the measured divergence tells of the predicted one."""
        tried: dict[str, tuple[BuiltMix, float]] = {}
        target = most
        for _ in range(1 + _CORRECTIONS):
            recipe = self.dial.for_divergence(target)
            if recipe.name in tried:
                break
            result = self._write(recipe)
            row = divergence_rows(held, [result.path], self._progress)[0]
            kld = sum(row.chunk_kld) / row.chunks
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

    def _prove(self, made: BuiltMix, held: MeasureSettings) -> BuiltMix:
        stored = beside(made.result.path, "proof.json")
        proof = _stored(stored, made.result, held)
        if proof is None:
            proof = self._measure_beside(made.result, held)
            write_whole(stored, json.dumps(proof.document(), indent=1) + "\n")
        if proof.better or proof.preset is None:
            return replace(made, proof=proof)
        preset = self._as_preset((level_named(proof.preset.level),), self._quantize.directory)
        kept = self._run(preset)
        discard(self._quantize, [made.recipe.name])
        made.recipe_file.unlink(missing_ok=True)
        return replace(made, proof=proof, kept=kept)

    def _measure_beside(self, solved: LevelResult, held: MeasureSettings) -> Proof:
        """Make the preset and the random mix, measure, and remove them again."""
        scratch = beside(solved.path, "proof")
        sizes = self._preset_sizes(LEVELS)
        budget = self._budget(self._settings.wanted) or solved.bytes
        smaller = [level for level, size in sizes.items() if size <= budget]
        random = self.dial.random(budget)
        try:
            settings = replace(self._quantize, directory=scratch, replace="always")
            drawn = self._run(replace(settings, levels=(random,)), self._gptq)
            preset = None
            if smaller:
                nearest = max(smaller, key=sizes.__getitem__)
                preset = self._run(self._as_preset((nearest,), scratch))
            return prove(held, solved, preset, drawn, self._progress)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _preset_sizes(self, levels: Sequence[Level]) -> dict[Level, int]:
        """The bytes of the files of llama.cpp's own levels."""
        job = prepare(self._as_preset(levels, None))
        return {output.planned.level: output.bytes for output in job.outputs}

    def _as_preset(self, levels: Sequence[Level], directory: Path | None) -> QuantizeSettings:
        """Levels as a user would make them: with the importance matrix that was given, if any."""
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
    """The importance matrix that costs were computed with: beside the sensitivity, or the given.

    Raises Damaged where another one was given, NotFound where there is none.
    """
    given = settings.quantize.imatrix
    wanted = sensitivity.imatrix
    if given is not None and file_sha256(given) not in (wanted["sha256"], wanted.get("given")):
        raise Damaged(
            f"{settings.sensitivity.name} was not measured with {given.name}",
            "measure with it: minitron sensitivity MODEL -f TEXT --imatrix FILE",
        )
    for path in (settings.sensitivity.with_name(wanted.get("name", "")), given):
        if path is not None and path.is_file() and file_sha256(path) == wanted["sha256"]:
            return path
    raise NotFound(
        f"{wanted.get('name')} belongs to {settings.sensitivity} and is not beside it",
        "put it back there, or measure again: minitron sensitivity MODEL -f TEXT",
    )


def _stored(path: Path, result: LevelResult, held: MeasureSettings) -> Proof | None:
    """The proof of an earlier run, if it is of this file on this text."""
    try:
        proof = Proof.of_document(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    same = proof.file_sha256 == result.sha256 and proof.text_sha256 == file_sha256(held.text)
    return proof if same and held.chunks.limit in (None, proof.chunks) else None

"""What a user could have instead of a mix: made to be measured beside it, or to replace it."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minitron_core.progress import Progress
from minitron_quant.levels import LEVELS, Level, level_named
from minitron_quant.mixed_precision.held_out import Other, Verification, verify_mix
from minitron_quant.mixed_precision.mix_codes import MixCodes
from minitron_quant.mixed_precision.size_solver import SizeSolver
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.prepare import QuantizeJob, QuantizeSettings, prepare
from minitron_quant.quantize.recipe import Recipe
from minitron_quant.quantize.run import LevelResult, run


class Alternatives:
    """llama.cpp's levels, random mixes, and mixes with independent codes, of one model.

    quantize: how mixes are made. imatrix: what levels are made with, as a user would make them.
    """

    def __init__(
        self,
        quantize: QuantizeSettings,
        imatrix: Path | None,
        gptq: MixCodes | None,
        progress: Progress,
    ) -> None:
        self._quantize, self._imatrix = quantize, imatrix
        self._gptq, self._progress = gptq, progress

    def preset_sizes(self, levels: Sequence[Level]) -> dict[Level, int]:
        """The bytes of the files of llama.cpp's own levels."""
        job = self._preset(levels, None)
        return {output.planned.level: output.bytes for output in job.outputs}

    def measure(
        self,
        solved: tuple[Recipe, LevelResult],
        budget: int,
        solver: SizeSolver,
        held: MeasureSettings,
        scratch: Path,
    ) -> Verification:
        """Make in a scratch folder what to compare a mix of so many bytes with, and measure all."""
        sizes = self.preset_sizes(LEVELS)
        smaller = [level for level, size in sizes.items() if size <= budget]
        there = replace(self._quantize, directory=scratch, replace="always")
        recipe, result = solved
        jobs: dict[Other, QuantizeJob] = {}
        try:
            if self._gptq is not None and self._gptq.method != "independent":
                jobs["independent"] = self._gptq.independent.job(replace(there, levels=(recipe,)))
            else:
                jobs["random"] = self._job(replace(there, levels=(solver.random(budget),)))
            if smaller:
                jobs["preset"] = self._preset((max(smaller, key=sizes.__getitem__),), scratch)
            others = {name: self._made(job) for name, job in jobs.items()}
            return verify_mix(held, result, others, self._progress)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def preset(self, level: str) -> LevelResult:
        """A level in the place of a mix."""
        return self._made(self._preset((level_named(level),), self._quantize.directory))

    def independent(self, recipe: Recipe, gptq: MixCodes) -> LevelResult:
        """A mix with independent codes, in the place of one with sequential codes."""
        return self._made(gptq.independent.job(replace(self._quantize, levels=(recipe,))))

    def _job(self, settings: QuantizeSettings) -> QuantizeJob:
        return prepare(settings) if self._gptq is None else self._gptq.job(settings)

    def _made(self, job: QuantizeJob) -> LevelResult:
        (result,) = run(job, self._progress)
        return result

    def _preset(self, levels: Sequence[Level], directory: Path | None) -> QuantizeJob:
        """Levels as a user would make them: with the importance matrix given, if any."""
        settings = replace(
            self._quantize,
            levels=tuple(levels),
            directory=directory,
            imatrix=self._imatrix,
            replace="outdated",
            options=QuantizeOptions(),
        )
        return prepare(settings)

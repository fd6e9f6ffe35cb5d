"""The sizes of a job file: solved mixes beside the levels, each "1.5G", "3.5bpw", "like:Q3_K_M"."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minitron_cli.options.quantize import parse_types
from minitron_cli.pipeline.job_file import Job
from minitron_cli.units import parse_size
from minitron_core.atomic_files import write_whole
from minitron_core.errors import Usage
from minitron_core.progress import Progress
from minitron_quant.levels import level_named
from minitron_quant.mixed_precision.build_mix import MixBuilder, MixSettings, MixTarget, sibling
from minitron_quant.mixed_precision.measure import SensitivitySettings, measure_sensitivity
from minitron_quant.mixed_precision.size_solver import Restrictions
from minitron_quant.quantize.prepare import QuantizeSettings, model_name, prepare
from minitron_quant.quantize.recipe import Recipe
from minitron_quant.quantize.run import LevelResult, run


def parse_wanted(text: str) -> MixTarget:
    """What a size in a job file means; Usage where it means nothing."""
    kind, colon, value = text.partition(":")
    if colon and kind.strip() == "like":
        return MixTarget(like=level_named(value.strip()))
    if colon and kind.strip() == "kld" and re.fullmatch(r"\s*\d{0,15}\.?\d{1,15}\s*", value):
        return MixTarget(max_kld=float(value))
    bits = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?)\s*bpw", text.strip())
    if bits:
        return MixTarget(bits=float(bits[1]))
    try:
        return MixTarget(size=parse_size(text))
    except Usage as error:
        raise Usage(str(error), "write 1.5G, 3.5bpw, like:Q3_K_M or kld:0.02") from error


def check_sizes(job: Job) -> None:
    """Refuse sizes that mean nothing, or that nothing can be solved for, before work begins."""
    for size in job.quantize.sizes:
        parse_wanted(size)
    if job.quantize.sizes and not job.calibration.text:
        raise Usage("sizes need a text to measure the model on", "name one in [calibration]")


def make_sizes(
    quantize: QuantizeSettings, text: Path, sizes: Sequence[str], resume: bool, listener: Progress
) -> list[LevelResult]:
    """Measure the model's sensitivity on a text if need be, and write the sizes in one go.

    resume: whether a sensitivity that lies there is of the same inputs.
    """
    folder = quantize.directory or quantize.source.parent
    output = folder / f"{model_name(quantize.source)}.sensitivity.json"
    if not resume:
        output.unlink(missing_ok=True)
    settings = SensitivitySettings(
        quantize.source,
        text,
        output,
        quantize.imatrix,
        gpu_layers=quantize.gpu_layers,
        placement=quantize.placement,
        resume=resume,
    )
    chunks = replace(settings.chunks, threads=quantize.threads)
    measure_sensitivity(replace(settings, chunks=chunks), listener)
    _, excluded = parse_types(None)
    restrictions = Restrictions(excluded=excluded)
    maker = MixBuilder(MixSettings(quantize, output, MixTarget(), restrictions), listener)
    recipes: dict[str, Recipe] = {}
    for size in sizes:
        recipe = maker.solve(parse_wanted(size))
        same = recipes.get(recipe.name)
        if same is not None and same.types != recipe.types:
            recipe = replace(recipe, name=f"{recipe.bits:.4f}bpw")
        recipes[recipe.name] = recipe
    levels = tuple(recipes.values())
    job = prepare(replace(quantize, levels=levels, imatrix=maker.imatrix))
    results = list(run(job, listener))
    for recipe, result in zip(levels, results, strict=True):
        write_whole(sibling(result.path, "types.txt"), recipe.text)
    return results

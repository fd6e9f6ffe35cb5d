"""Mixed precision against llama.cpp's own levels: divergence of files of the same size.

    python benchmarks/mixed_precision.py MODEL.gguf... --calibration a.txt --text b.txt --text c.raw

The levels are made as users make them, with an importance matrix that has no output entry. Prints
Markdown; the first text is of the calibration's kind. With --gptq the solved files are made a
second time, solved for and encoded with GPTQ on the calibration text.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings
from minitron_quant.covariance.collect import CovarianceSettings, collect_covariance
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.imatrix.collect import CollectSettings, collect
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.levels import parse_levels
from minitron_quant.mixed_precision.measure import SensitivitySettings, measure_sensitivity
from minitron_quant.mixed_precision.predict_kld import predict_kld, with_gptq
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity
from minitron_quant.mixed_precision.size_solver import Restrictions, SizeSolver
from minitron_quant.model_files import open_model_files
from minitron_quant.perplexity.paired import paired_difference
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure
from minitron_quant.quantize.importance import load_importance
from minitron_quant.quantize.prepare import QuantizeSettings, prepare
from minitron_quant.quantize.recipe import Recipe
from minitron_quant.quantize.run import LevelResult, run

LEVELS = "IQ2_XXS,IQ2_M,Q2_K,IQ3_XXS,Q3_K_M,IQ4_XS,Q4_K_M,Q5_K_M"


def main() -> None:
    """Parse, measure every model, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="full-precision GGUF files")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--levels", default=LEVELS)
    parser.add_argument("--tokens", type=int, default=2048, help="for every tensor's sensitivity")
    parser.add_argument("--chunks", type=int, help="at most this many of each text")
    parser.add_argument("--gptq", action="store_true", help="also with GPTQ")
    given = parser.parse_args()
    for model in given.models:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
            report(model, Path(folder), given)


def report(model: Path, folder: Path, given: argparse.Namespace) -> None:
    """One model's tables."""
    imatrix = folder / "imatrix.gguf"
    with open_model(ModelSettings(model)) as loaded:
        write_imatrix(imatrix, collect(loaded, CollectSettings((given.calibration,))))
    started = time.perf_counter(), time.process_time()
    settings = SensitivitySettings(
        model, given.calibration, folder / "model.sensitivity.json", imatrix, tokens=given.tokens
    )
    sensitivity = measure_sensitivity(settings)
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    print(f"\n## {model.name}\n")
    print(
        f"Sensitivity of {len(sensitivity.tensors)} tensors on {sensitivity.chunks * 512} tokens "
        f"each: {wall:.0f} s ({cpu:.0f} s of processor time), ± {100 * sensitivity.error:.0f} %."
    )
    quantize = QuantizeSettings(model, (), folder, imatrix=imatrix)
    levels = tuple(parse_levels(given.levels.split(",")))
    presets = list(run(prepare(replace(quantize, levels=levels))))
    solved = {"solved": solve(settings, sensitivity, presets, quantize)}
    if given.gptq:
        covariance = folder / "covariance.gguf"
        with open_model(ModelSettings(model)) as loaded:
            collect_covariance(loaded, CovarianceSettings((given.calibration,)), covariance)
        quantize = replace(quantize, directory=folder / "gptq")
        gptq = GptqEncoder(covariance, open_model_files(model))
        solved["solved, with GPTQ"] = solve(settings, sensitivity, presets, quantize, gptq)
    for text in given.text:
        for way, (recipes, files) in solved.items():
            print(f"\n{text.name}, {way}:\n")
            compare(presets, recipes, files, text, model, given.chunks)


def solve(
    settings: SensitivitySettings,
    sensitivity: Sensitivity,
    presets: list[LevelResult],
    quantize: QuantizeSettings,
    gptq: GptqEncoder | None = None,
) -> tuple[list[Recipe], list[LevelResult]]:
    """A file of the size of every preset, its divergence predicted."""
    started = time.perf_counter()
    imatrix = settings.imatrix_output
    if gptq is not None:
        sensitivity = with_gptq(sensitivity, gptq)
    keys = gptq.keys if gptq else ()
    solver = SizeSolver(settings.model, sensitivity, imatrix, Restrictions(), keys)
    recipes = [solver.for_size(preset.bytes) for preset in presets]
    if gptq is not None:
        given = sensitivity, gptq, load_importance(imatrix).weights
        predicted = [
            predict_kld(ModelSettings(settings.model), recipe, *given) for recipe in recipes
        ]
        pairs = zip(recipes, predicted, strict=True)
        recipes = [replace(recipe, predicted=value) for recipe, value in pairs]
    print(f"Solved {len(recipes)} sizes in {time.perf_counter() - started:.1f} s.")
    # two levels of nearly the same size have recipes of the same name
    named = tuple(
        replace(recipe, name=f"like-{preset.level}")
        for recipe, preset in zip(recipes, presets, strict=True)
    )
    job = prepare(replace(quantize, levels=named, imatrix=imatrix), gptq)
    return recipes, list(run(job))


def compare(
    presets: list[LevelResult],
    recipes: list[Recipe],
    solved: list[LevelResult],
    text: Path,
    model: Path,
    chunks: int | None,
) -> None:
    """A table of presets and solved files on one text."""
    files = tuple(result.path for result in (*presets, *solved))
    settings = MeasureSettings(files, text, ChunkSettings(limit=chunks), reference=model)
    rows = {row.model: row for row in measure(settings)}
    print("| level | bytes | KLD | solved: bytes | KLD | change | 95 % interval | predicted |")
    print("|:--|--:|--:|--:|--:|--:|--:|--:|")
    for preset, recipe, result in zip(presets, recipes, solved, strict=True):
        theirs, ours = rows[preset.path.name].chunk_kld, rows[result.path.name].chunk_kld
        difference = paired_difference(ours, theirs)
        kld, base = sum(ours) / len(ours), sum(theirs) / len(theirs)
        low, mean, high = (
            f"{100 * value / base:+.0f}"
            for value in (difference.low, difference.mean, difference.high)
        )
        off = f"{recipe.predicted:.5f} ({100 * (recipe.predicted / kld - 1):+.0f} %)"
        print(
            f"| {preset.level} | {preset.bytes:,} | {base:.5f} | {result.bytes:,} | {kld:.5f} "
            f"| {mean} % | {low} … {high} % | {off} |"
        )


if __name__ == "__main__":
    main()

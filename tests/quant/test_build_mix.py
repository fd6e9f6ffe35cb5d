"""Mixes for a size: budgets, restrictions, replay by llama.cpp, verification on held-out text."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.support import EXAMPLES, RECORDED, library_quantize
from minitron_core.errors import Damaged, NotFound, Usage
from minitron_core.gguf import TYPE, TYPE_ID, open_gguf
from minitron_core.hashing import file_sha256
from minitron_quant.chunking import ChunkSettings
from minitron_quant.levels import level_named, parse_levels
from minitron_quant.mixed_precision import alternatives
from minitron_quant.mixed_precision import build_mix as make_module
from minitron_quant.mixed_precision.build_mix import MixBuilder, MixSettings, MixTarget, sibling
from minitron_quant.mixed_precision.held_out import Baseline, Verification
from minitron_quant.mixed_precision.measure import SensitivitySettings
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity, write_sensitivity
from minitron_quant.mixed_precision.size_solver import Restrictions, SizeSolver
from minitron_quant.perplexity.paired import Difference
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.perplexity.table import measure
from minitron_quant.quantize.prepare import QuantizeSettings
from minitron_quant.quantize.recipe import make_recipe

Q3, Q4, Q6 = (TYPE_ID[name] for name in ("q3_K", "q4_0", "q6_K"))


@pytest.fixture
def job(settings: SensitivitySettings, measured: Sensitivity, tmp_path: Path) -> MixSettings:
    quantize = QuantizeSettings(settings.model, (), tmp_path)
    return MixSettings(quantize, settings.output, MixTarget(size=2_500_000))


@pytest.fixture
def held_out(settings: SensitivitySettings) -> MeasureSettings:
    chunks = ChunkSettings(n_ctx=64, n_batch=64, limit=6)
    return MeasureSettings((), EXAMPLES / "held-out.txt", chunks, reference=settings.model)


def solver_of(
    settings: SensitivitySettings, measured: Sensitivity, **restrictions: Any
) -> SizeSolver:
    restricted = Restrictions(**restrictions)
    return SizeSolver(settings.model, measured, settings.imatrix_output, restricted)


def test_for_size_fills_the_budget_and_never_exceeds_it(
    settings: SensitivitySettings, measured: Sensitivity
) -> None:
    solver = solver_of(settings, measured)
    before = float("inf")
    for budget in range(1_750_000, 5_000_000, 33_333):
        recipe = solver.for_size(budget)
        assert budget - 16_000 < solver.file_bytes(recipe) <= budget
        assert recipe.predicted <= before
        before = recipe.predicted


def test_for_size_refuses_impossible_budgets_and_names_the_range(
    settings: SensitivitySettings, measured: Sensitivity
) -> None:
    solver = solver_of(settings, measured)
    for budget, word in ((1_000_000, "fewer"), (11_000_000, "more")):
        with pytest.raises(Usage, match=rf"{word} .* from 1,[\d,]+ to 10,[\d,]+ bytes"):
            solver.for_size(budget)
    for bits, word in ((1.0, "fewer"), (17.0, "more")):
        with pytest.raises(Usage, match=rf"{word} .* from 2\.[\d]+ to 16\.[\d]+"):
            solver.for_bits(bits)
    with pytest.raises(Usage, match="no mix of the types allowed"):
        solver_of(settings, measured, types=(Q3,)).for_divergence(1e-9)


def test_for_bits_and_for_divergence_stay_within_their_targets(
    settings: SensitivitySettings, measured: Sensitivity
) -> None:
    solver = solver_of(settings, measured)
    for bits in (2.9, 3.5, 4.25, 6.0):
        assert bits - 0.02 < solver.for_bits(bits).bits <= bits
    for divergence in (0.05, 0.01, 0.001):
        recipe = solver.for_divergence(divergence)
        assert recipe.predicted <= divergence
        assert solver.for_size(solver.file_bytes(recipe) - 8_000).predicted > divergence


def test_restrictions_of_types_pins_and_floors_hold(
    settings: SensitivitySettings, measured: Sensitivity
) -> None:
    pins = ((r"blk\.0\.attn_q", Q6), ("attn_q", Q3))
    solver = solver_of(settings, measured, pins=pins, floors=(("ffn_down", Q4),))
    types = dict(solver.for_size(2_300_000).types)
    assert types["blk.0.attn_q.weight"] == Q6 and types["blk.2.attn_q.weight"] == Q3
    for name, kind in types.items():
        if "ffn_down" in name:
            assert TYPE[kind].name in ("q4_0", "q6_K", "q8_0", "f16")
    only = dict(solver_of(settings, measured, types=(Q3, Q6)).for_size(2_500_000).types)
    assert set(only.values()) == {Q3, Q6}
    without = solver_of(settings, measured, excluded=(Q4,)).for_size(2_500_000)
    assert Q4 not in dict(without.types).values()
    with pytest.raises(Usage, match="matches no tensor"):
        solver_of(settings, measured, pins=(("nothing", Q4),))


def test_curve_falls_and_lies_below_the_presets(
    settings: SensitivitySettings, measured: Sensitivity
) -> None:
    solver = solver_of(settings, measured)
    curve = solver.curve(9)
    assert [point.predicted for point in curve] == sorted(
        (point.predicted for point in curve), reverse=True
    )
    # levels of the same few types that were measured
    for preset in solver.presets(parse_levels(["Q4_0", "Q6_K", "Q8_0"])):
        assert solver.for_size(preset.bytes + 2_000).predicted <= preset.predicted * (1 + 1e-9)
    assert curve[-1].predicted == 0


def test_make_gives_the_tensors_that_llama_cpp_makes_of_the_recipe(
    job: MixSettings, settings: SensitivitySettings, tmp_path: Path
) -> None:
    made = MixBuilder(job).make()
    assert made.result.bytes <= 2_500_000 and made.result.path.stat().st_size == made.result.bytes
    lines = made.recipe_file.read_text().split()
    patterns = [(line.split("=")[0], TYPE_ID[line.split("=")[1]]) for line in lines]
    theirs = tmp_path / "theirs.gguf"
    library_quantize(settings.model, theirs, "Q4_K_M", settings.imatrix_output, patterns)
    ours, other = open_gguf(made.result.path), open_gguf(theirs)
    assert ours.tensors == other.tensors
    for info in ours.tensors:
        assert (ours.data(info) == other.data(info)).all(), info.name
    differing = {key for key, entry in ours.metadata.items() if other.metadata.get(key) != entry}
    own = {key for key in differing if key.startswith("minitron.")}
    assert differing - own <= {"general.file_type", *(k for k in differing if "imatrix" in k)}
    assert ours.get("minitron.recipe").split() == lines
    assert ours.get("minitron.level") == made.result.level == f"{made.recipe.bits:.2f}bpw"


def test_make_recipe_takes_the_file_type_of_most_weights() -> None:
    model = open_gguf(RECORDED / "nano-llama.imatrix.gguf")  # any tensors
    tensors = {info.name: info for info in model.tensors if info.shape[0] % 256 == 0}
    recipe = make_recipe(dict.fromkeys(tensors, TYPE_ID["q5_K"]), tensors, 0.5)
    assert recipe.ftype == level_named("Q5_K_M").ftype and recipe.name == "5.50bpw"
    assert make_recipe(dict.fromkeys(tensors, TYPE_ID["q2_0"]), tensors, 0).ftype == 15


def test_make_verifies_once_and_stores_the_result(
    job: MixSettings, held_out: MeasureSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = replace(job, held_out=held_out)
    made = MixBuilder(job).make()
    assert (
        made.verification is not None and made.verification.preset is not None and made.kept is None
    )
    preset, random = made.verification.preset, made.verification.random
    assert random is not None and made.gptq is None
    assert 2_000_000 < preset.bytes <= 2_500_000
    assert 2_300_000 < random.bytes <= 2_500_000
    assert made.verification.kld < min(preset.baseline_kld, random.baseline_kld)
    assert preset.difference.low <= preset.difference.mean <= preset.difference.high < 0
    row = next(
        row for row in measure(replace(held_out, models=(made.result.path,))) if row.divergence
    )
    assert row.divergence is not None and row.level == made.result.level
    assert made.verification.kld == pytest.approx(row.divergence.kld_mean)
    left = {path.name for path in tmp_path.iterdir()}
    assert not any(name.endswith("verification") for name in left)
    monkeypatch.setattr(alternatives, "verify_mix", None)
    again = MixBuilder(job).make()
    assert again.verification == made.verification and again.result.kept


def test_make_keeps_a_preset_that_is_better(
    job: MixSettings, held_out: MeasureSettings, tmp_path: Path
) -> None:
    solved = MixBuilder(job).make().result
    other = Baseline(0.6, 0.5, Difference(0.1, 0.05, 0.15), "Q4_0", 2_400_000)
    hashes = file_sha256(held_out.text), solved.sha256
    proof = Verification(held_out.text.name, *hashes, 6, 0.6, 0.01, other, other)
    sibling(solved.path, "verification.json").write_text(json.dumps(proof.document()))
    made = MixBuilder(replace(job, held_out=held_out)).make()
    assert made.verification == proof and made.kept is not None and made.kept.level == "Q4_0"
    assert made.kept.path.is_file()
    assert not made.result.path.exists() and not made.recipe_file.exists()
    manifest = json.loads(next(tmp_path.glob("*.manifest.json")).read_text())
    assert list(manifest["levels"]) == ["Q4_0"]


def test_make_corrects_the_prediction_by_the_measured_divergence(
    job: MixSettings, held_out: MeasureSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Row:
        def __init__(self, kld: float) -> None:
            self.chunk_kld = (kld,)

    def worse_than_predicted(_held: Any, files: list[Path], _progress: Any) -> list[Row]:
        predicted = open_gguf(files[0]).get("minitron.predicted_kld")
        return [Row(1.5 * predicted)]

    better = Baseline(0.04, 0.06, Difference(-0.02, -0.03, -0.01), "Q4_0", 2_400_000)
    verified = Verification("t", "", "", 1, 0.04, 0.0, None, better)
    monkeypatch.setattr(make_module, "measure_divergence", worse_than_predicted)
    monkeypatch.setattr(alternatives, "verify_mix", lambda *_: verified)
    made = MixBuilder(replace(job, target=MixTarget(max_kld=0.05), held_out=held_out)).make()
    assert made.verification is not None
    assert replace(made.verification, made_from="") == verified
    assert made.met and 0.9 * 0.05 <= 1.5 * made.recipe.predicted <= 0.05
    assert [path.name for path in tmp_path.glob("*.gguf")] == [made.result.path.name]


def test_mix_builder_refuses_inputs_that_do_not_match(
    job: MixSettings, settings: SensitivitySettings, nano_llama: Path, tmp_path: Path
) -> None:
    other = replace(job.quantize, source=nano_llama)
    with pytest.raises(Damaged, match="was measured on"):
        MixBuilder(replace(job, quantize=other))
    matrix = RECORDED / "nano-nemotron.imatrix.gguf"
    with pytest.raises(Damaged, match=r"was not measured with nano-nemotron\.imatrix"):
        MixBuilder(replace(job, quantize=replace(job.quantize, imatrix=matrix)))
    own = MeasureSettings((), settings.text, ChunkSettings(n_ctx=64), reference=settings.model)
    with pytest.raises(Usage, match="the calibration text itself"):
        MixBuilder(replace(job, held_out=own))
    alone = tmp_path / "alone.json"
    alone.write_bytes(settings.output.read_bytes())
    with pytest.raises(NotFound, match="is not beside it"):
        MixBuilder(replace(job, sensitivity=alone))


def test_mix_builder_refuses_an_unfinished_sensitivity(
    job: MixSettings, settings: SensitivitySettings, measured: Sensitivity
) -> None:
    path = settings.output.with_name("begun.json")
    tensors = {name: replace(tensor, divergences=[]) for name, tensor in measured.tensors.items()}
    write_sensitivity(path, replace(measured, tensors=tensors, complete=False))
    with pytest.raises(Usage, match="has not measured every tensor"):
        MixBuilder(replace(job, sensitivity=path))

"""Predictions with GPTQ: fitted to one half of the text, measured on the other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minitron_core.gguf import TYPE_ID, open_gguf
from minitron_core.progress import ignore
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings
from minitron_quant.covariance.collect import CovarianceSettings, collect_covariance
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.mixed_precision import mix_codes
from minitron_quant.mixed_precision.build_mix import MixBuilder, MixSettings, MixTarget
from minitron_quant.mixed_precision.measure import SensitivitySettings
from minitron_quant.mixed_precision.probe import open_prober
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity
from minitron_quant.quantize.importance import load_importance
from minitron_quant.quantize.prepare import QuantizeSettings
from minitron_quant.quantize.recipe import Recipe

NAME = "blk.1.ffn_up.weight"


@pytest.fixture(scope="module")
def covariance(settings: SensitivitySettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("covariance") / "c.gguf"
    chunks = ChunkSettings(n_ctx=64, n_batch=256, limit=20, threads=1)
    with open_model(ModelSettings(settings.model, n_ctx=256)) as model:
        collect_covariance(model, CovarianceSettings((settings.text,), chunks), path)
    return path


def probed(settings: SensitivitySettings, sample: Sequence[int]) -> float:
    """The divergence on these chunks of 64 tokens with the one tensor as q3_K."""
    shard, chunks = open_gguf(settings.model), ChunkSettings(n_ctx=64, n_batch=64, threads=1)
    tokens = np.array(sample, np.int32).reshape(-1, 64)
    weights = load_importance(settings.imatrix_output).weights
    with (
        open_model(ModelSettings(settings.model, n_ctx=64, replaceable=True)) as model,
        open_prober(model, chunks, weights) as prober,
    ):
        reference = prober.reference(tokens)
        kind = TYPE_ID["q3_K"]
        return float(
            np.mean(prober.divergences(shard, shard.tensor(NAME), kind, tokens, reference))
        )


def test_predict_fits_one_half_and_measures_the_other(
    settings: SensitivitySettings,
    measured: Sensitivity,
    covariance: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    given = QuantizeSettings(settings.model, (), tmp_path, imatrix=settings.imatrix_output)
    quantize = replace(given, replace="always")  # predictions are kept
    codes = mix_codes.MixCodes(quantize, covariance, None, ignore)
    origin = codes.independent.covariance.origin
    assert origin.tokens == (640, 640) and len(origin.sample) == 10 * 64
    fitted: list[tuple[int, ...]] = []
    fitted_to = GptqEncoder.fitted_to

    def watched(self: GptqEncoder, parts: tuple[int, ...]) -> GptqEncoder:
        fitted.append(parts)
        return fitted_to(self, parts)

    def predicted(kind: str) -> float:
        types = tuple(
            (info.name, TYPE_ID[kind] if info.name == NAME else info.type)
            for info in open_gguf(settings.model).tensors
        )
        return codes.predict(Recipe("x", 7, 4.5, types=types), measured)

    monkeypatch.setattr(GptqEncoder, "fitted_to", watched)
    ours = predicted("q3_K")
    assert fitted == [(0,)] and not list(tmp_path.glob("*.gguf"))
    monkeypatch.setattr(GptqEncoder, "of", lambda *_: None)
    plain = predicted("q3_K")
    assert 0 < ours < 0.9 * plain
    # without GPTQ it is what a probe measures on the same tokens, and the rounding of inputs
    expected = probed(settings, origin.sample) + measured.rounding(NAME, TYPE_ID["q3_K"])
    assert plain == pytest.approx(expected, rel=0.2)
    assert predicted("f16") < 1e-12


def test_make_stores_the_prediction_and_reuses_it(
    settings: SensitivitySettings,
    measured: Sensitivity,
    covariance: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(mix_codes, "measure_kld", lambda *_: 0.125)
    monkeypatch.setattr(mix_codes, "with_gptq", lambda sensitivity, *_: sensitivity)
    monkeypatch.setattr(GptqEncoder, "_damping", lambda *_: 0.03)
    quantize = QuantizeSettings(settings.model, (), tmp_path)
    job = MixSettings(quantize, settings.output, MixTarget(size=2_500_000), covariance=covariance)
    made = MixBuilder(job).make()
    assert (
        open_gguf(made.result.path).get("minitron.predicted_kld") == made.recipe.predicted == 0.125
    )
    assert made.gptq == "independent"
    monkeypatch.setattr(mix_codes, "measure_kld", None)
    again = MixBuilder(job).make()
    assert again.result.kept and again.recipe == made.recipe
    monkeypatch.setattr(mix_codes, "measure_kld", lambda *_: 0.25)
    forced = MixBuilder(replace(job, quantize=replace(quantize, replace="always"))).make()
    assert forced.recipe.predicted == 0.25 and not forced.result.kept


def test_make_scales_predictions_for_a_divergence(
    settings: SensitivitySettings,
    measured: Sensitivity,
    covariance: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    solved: list[Recipe] = []

    def half(_codes: mix_codes.MixCodes, recipe: Recipe, *_: Any) -> float:
        solved.append(recipe)
        return recipe.predicted / 2

    monkeypatch.setattr(mix_codes.MixCodes, "_predict", half)
    monkeypatch.setattr(mix_codes, "with_gptq", lambda sensitivity, *_: sensitivity)
    monkeypatch.setattr(GptqEncoder, "_damping", lambda *_: None)
    quantize = QuantizeSettings(settings.model, (), tmp_path)
    target = MixTarget(max_kld=0.05)
    job = MixSettings(quantize, settings.output, target, covariance=covariance)
    made = MixBuilder(job).make()
    assert [recipe.predicted <= 0.05 for recipe in solved] == [True]
    # costs of up to twice the divergence asked for will do
    assert 0.045 < made.recipe.predicted <= 0.05 and made.recipe.bits < solved[0].bits
    assert sum(1 for _ in tmp_path.glob("*.gguf")) == 1

"""Mixes with sequential GPTQ: predicted, written, verified, continued where they were stopped."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.small_model import write_two_layers
from helpers.support import EXAMPLES
from minitron_core.errors import Usage
from minitron_core.gguf import TYPE_ID, open_gguf
from minitron_core.hashing import file_sha256
from minitron_core.progress import Event
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings
from minitron_quant.covariance.collect import CovarianceSettings, collect_covariance
from minitron_quant.gptq.sequential_levels import SequentialSettings
from minitron_quant.mixed_precision import costs as costs_module
from minitron_quant.mixed_precision import mix_codes
from minitron_quant.mixed_precision.alternatives import Alternatives
from minitron_quant.mixed_precision.build_mix import (
    BuiltMix,
    MixBuilder,
    MixSettings,
    MixTarget,
    sibling,
)
from minitron_quant.mixed_precision.held_out import Baseline, Verification
from minitron_quant.mixed_precision.measure import SensitivitySettings, measure_sensitivity
from minitron_quant.model_files import EMBEDDING
from minitron_quant.perplexity.paired import Difference
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.prepare import QuantizeSettings

TYPES = frozenset(TYPE_ID[name] for name in ("iq2_xxs", "q2_K", "q4_0"))
CHUNKS = ChunkSettings(n_ctx=128, n_batch=128, limit=8, threads=1)
TEXT = EXAMPLES / "calibration.txt"
BYTES = 610_000


@pytest.fixture(scope="module", autouse=True)
def _prices_of_the_sensitivity() -> Iterator[None]:
    """What GPTQ leaves of the costs takes long, and is tested for independent codes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix_codes, "with_gptq", lambda sensitivity, *_: sensitivity)
        yield


@pytest.fixture(scope="module")
def inputs(nano_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> MixSettings:
    """A model of two layers, its sensitivity and its covariance."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_two_layers(nano_llama, folder / "nano-F16.gguf")
    text = folder / "text.txt"
    text.write_text(TEXT.read_text()[:9000])
    chunks = replace(CHUNKS, limit=None)
    wanted = SensitivitySettings(model, text, folder / "nano.sensitivity.json", tokens=128)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(costs_module, "ENCODABLE", TYPES)
        patch.setattr(costs_module, "_ROWS", 64)
        measure_sensitivity(replace(wanted, chunks=chunks))
    covariance = folder / "nano.covariance.gguf"
    with open_model(ModelSettings(model, n_ctx=128)) as loaded:
        collect_covariance(loaded, CovarianceSettings((TEXT,), CHUNKS), covariance)
    quantize = QuantizeSettings(model, (), threads=1)
    sequential = SequentialSettings((TEXT,), CHUNKS)
    target = MixTarget(size=BYTES)
    return MixSettings(
        quantize, wanted.output, target, covariance=covariance, sequential=sequential
    )


def job_in(inputs: MixSettings, folder: Path, **more: Any) -> MixSettings:
    return replace(inputs, quantize=replace(inputs.quantize, directory=folder, **more))


@pytest.fixture(scope="module")
def made(inputs: MixSettings, tmp_path_factory: pytest.TempPathFactory) -> BuiltMix:
    return MixBuilder(job_in(inputs, tmp_path_factory.mktemp("mix"))).make()


@pytest.fixture
def held_out(inputs: MixSettings) -> MeasureSettings:
    chunks = replace(CHUNKS, limit=4)
    return MeasureSettings((), EXAMPLES / "held-out.txt", chunks, reference=inputs.quantize.source)


def test_mix_has_sequential_codes_and_a_prediction_of_them(
    inputs: MixSettings, made: BuiltMix
) -> None:
    file = open_gguf(made.result.path)
    assert file.get("minitron.gptq.method") == made.gptq == "sequential"
    assert file.get("minitron.gptq.tokens") == 8 * 128
    assert {info.name: info.type for info in file.tensors}.items() >= dict(
        made.recipe.types
    ).items()
    assert len(set(dict(made.recipe.types).values())) > 1
    folder = made.result.path.parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            "nano.manifest.json",
            "nano.predictions.json",
            made.result.path.name,
            made.recipe_file.name,
        ]
    )
    (stored,) = json.loads((folder / "nano.predictions.json").read_text()).values()
    predicted = pytest.approx(made.recipe.predicted)
    assert stored == {"mix": made.recipe.name, "gptq": "sequential", "predicted_kld": predicted}
    assert file.get("minitron.predicted_kld") == pytest.approx(made.recipe.predicted)
    # it differs from the sum of the costs that the mix was solved for
    assert MixBuilder(job_in(inputs, folder)).solve().predicted != predicted


def test_mix_with_sequential_codes_is_verified_beside_independent_ones(
    inputs: MixSettings, made: BuiltMix, held_out: MeasureSettings
) -> None:
    folder = made.result.path.parent
    verified = MixBuilder(replace(job_in(inputs, folder), held_out=held_out)).make()
    assert verified.result.kept and verified.recipe == made.recipe
    proof = verified.verification
    assert proof is not None and proof.independent is not None and proof.random is None
    assert proof.independent.bytes == pytest.approx(made.result.bytes, abs=32)
    assert proof.kld < proof.independent.baseline_kld and proof.replaced_by is None
    # few tokens to fit and to measure: the same scale
    assert 1 / 3 < made.recipe.predicted / proof.kld < 3


class Killed(KeyboardInterrupt):
    pass


def test_mix_continues_after_the_last_whole_layer(
    inputs: MixSettings, made: BuiltMix, tmp_path: Path
) -> None:
    settings = job_in(inputs, tmp_path, threads=2)
    seen: list[tuple[str, float]] = []

    def until(stage: str) -> BuiltMix:
        def listen(event: Event) -> None:
            if event.unit == "layers":
                seen.append((event.stage, event.done))
                if event.stage == stage and event.done > 1:
                    raise Killed

        seen.clear()
        return MixBuilder(settings, listen).make()

    for stage in ("prediction", "gptq"):
        with pytest.raises(Killed):
            until(stage)
        assert not list(tmp_path.glob("*.gguf"))
    # the prediction went on in its second layer
    assert seen[0] == ("prediction", 1)
    again = until("nothing")
    assert seen[0] == ("gptq", 1) and {stage for stage, _ in seen} == {"gptq"}
    assert again.result.path.read_bytes() == made.result.path.read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("better", ["independent", "preset"])
def test_mix_is_replaced_by_what_diverges_less(
    better: str,
    inputs: MixSettings,
    made: BuiltMix,
    held_out: MeasureSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for path in made.result.path.parent.iterdir():
        if not path.name.endswith("verification.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    klds = {"independent": 0.59, "preset": 0.59} | {better: 0.5}
    others = {
        name: Baseline(0.6, kld, Difference(0.6 - kld, 0, 1), "Q2_K", 1)
        for name, kld in klds.items()
    }
    hashes = file_sha256(held_out.text), made.result.sha256
    proof = Verification(
        held_out.text.name,
        *hashes,
        4,
        0.6,
        0.01,
        preset=others["preset"],
        independent=others["independent"],
    )
    monkeypatch.setattr(Alternatives, "measure", lambda *_: proof)
    settings = replace(job_in(inputs, tmp_path), held_out=held_out)
    found = MixBuilder(settings).make()
    assert found.kept is not None and found.verification is not None
    assert replace(found.verification, made_from="") == proof
    assert [path.name for path in tmp_path.glob("*.gguf")] == [found.kept.path.name]
    assert BYTES - 5_000 < max(made.result.bytes, found.kept.bytes) <= BYTES
    method = open_gguf(found.kept.path).metadata.get("minitron.gptq.method")
    if better == "preset":
        assert (found.kept.level, found.gptq, method) == ("Q2_K", None, None)
        assert not list(tmp_path.glob("*.types.txt"))
    else:
        assert method is not None and method.value == found.gptq == "independent"
        assert found.kept.level == f"{made.recipe.name}-independent"
        assert [*tmp_path.glob("*.types.txt")] == [sibling(found.kept.path, "types.txt")]
        # the embedding is looked up: both have it as the matrix of the sensitivity says
        ours, theirs = open_gguf(made.result.path), open_gguf(found.kept.path)
        first, second = (file.data(file.tensor(EMBEDDING)) for file in (ours, theirs))
        np.testing.assert_array_equal(first, second)
        # its prediction is of its own codes
        assert found.recipe.predicted != made.recipe.predicted
    # what was kept is up to date: the mix is not made a second time
    events: list[Event] = []
    again = MixBuilder(settings, events.append).make()
    assert again.kept == replace(found.kept, kept=True)
    assert again.recipe == found.recipe and again.verification == found.verification
    assert "layers" not in {event.unit for event in events}


def test_mix_refuses_texts_that_do_not_go_together(
    inputs: MixSettings, held_out: MeasureSettings, tmp_path: Path
) -> None:
    settings = job_in(inputs, tmp_path)
    fewer = SequentialSettings((TEXT,), replace(CHUNKS, limit=6))
    with pytest.raises(Usage, match=r"nano\.covariance\.gguf was collected on another text"):
        MixBuilder(replace(settings, sequential=fewer))
    with pytest.raises(Usage, match="is solved for a covariance"):
        MixBuilder(replace(settings, covariance=None))
    calibration = replace(held_out, text=TEXT)
    with pytest.raises(Usage, match="proves nothing"):
        MixBuilder(replace(settings, held_out=calibration))

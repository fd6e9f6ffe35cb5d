"""Sensitivity: costs by their definition, weights replaced and put back, files, resuming."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.support import EXAMPLES
from minitron_core.errors import Damaged, NotFound, Usage
from minitron_core.gguf import F16, TYPE_ID, GgufWriter, TensorSpec, open_gguf
from minitron_core.progress import Event, ignore
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.chunking import ChunkSettings, chunk_text, read_text
from minitron_quant.imatrix.collect import CollectSettings
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.imatrix.matrix import ImportanceMatrix
from minitron_quant.mixed_precision import costs as costs_module
from minitron_quant.mixed_precision import importance
from minitron_quant.mixed_precision.costs import (
    CostInputs,
    InputMoments,
    OutputErrors,
    sampled_tasks,
    type_costs,
)
from minitron_quant.mixed_precision.measure import SensitivitySettings, measure_sensitivity
from minitron_quant.mixed_precision.probe import open_prober, probe_of, round_trip
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity, read_sensitivity
from minitron_quant.perplexity.divergence import compare_chunk

CALIBRATION = EXAMPLES / "calibration.txt"
CHUNKS = ChunkSettings(n_ctx=64, n_batch=64)
Q3_K, Q4_0, IQ4_NL = (TYPE_ID[name] for name in ("q3_K", "q4_0", "iq4_nl"))


def test_output_errors_are_the_expected_squared_error_of_the_output() -> None:
    random = np.random.default_rng(0)
    inputs = random.standard_normal((5000, 8)) * random.random(8) + random.standard_normal(8)
    weights, errors = random.standard_normal((2, 4, 8)).astype(np.float32)
    # columns without correlation, as the formula supposes
    centred = inputs - inputs.mean(axis=0)
    inputs = np.linalg.qr(centred)[0] * random.random(8) * 70 + inputs.mean(axis=0)
    known = InputMoments(
        (inputs**2).mean(axis=0)[None].astype(np.float32),
        inputs.mean(axis=0)[None].astype(np.float32),
    )
    error, signal = OutputErrors(known)(weights, weights + errors, 0)
    assert error == pytest.approx(((inputs @ errors.T) ** 2).sum(axis=1).mean(), rel=1e-4)
    assert signal == pytest.approx(((inputs @ weights.T) ** 2).sum(axis=1).mean(), rel=1e-4)


def test_type_costs_of_sampled_rows_and_of_frequent_tokens(
    nano_nemotron: Path, few_types: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs_module, "_ROWS", 4096)
    shard = open_gguf(nano_nemotron)
    names = ("token_embd.weight", "blk.0.attn_k.weight")
    tensors = {name: (shard, shard.tensor(name)) for name in names}
    frequency = np.zeros(4096)
    frequency[[5, 300, 301]] = 1024, 2048, 1024
    found = type_costs(CostInputs(tensors, {}, {}, frequency))
    kind = TYPE_ID["q4_0"]
    for name in names:
        info = shard.tensor(name)
        original = shard.data(info)
        difference = (
            round_trip(info, original, kind, None, 1).view(np.float16).astype(np.float64)
            - original.view(np.float16)
        ).reshape(info.rows, -1)
        squares = (difference**2).sum(axis=1)
        wanted = squares @ frequency / 4096 if name == names[0] else squares.sum()
        assert found[name][kind] == pytest.approx(wanted, rel=2e-3)  # there: rounded to F16
    assert TYPE_ID["q2_K"] in found[names[1]]


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((256, 2000), 1024), ((256, 300), 300), ((8192, 2000), 256), ((8192, 64, 8), 32 * 8)],
    ids=["narrow", "few rows", "wide", "experts"],
)
def test_sampled_tasks_take_fewer_rows_of_wide_tensors(
    shape: tuple[int, ...], rows: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    with GgufWriter(path, [], [TensorSpec("x", shape, F16)]) as writer:
        writer.write(np.zeros(shape, np.float16))
    shard = open_gguf(path)
    given = CostInputs({"x": (shard, shard.tensor("x"))}, {}, {}, np.ones(1))
    ((task, scale),) = sampled_tasks(given)
    assert task.info.rows == rows
    assert scale * rows == shard.tensor("x").rows


def test_type_costs_leave_out_types_that_lose_too_much(
    nano_nemotron: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = [TYPE_ID[name] for name in ("q1_0", "q2_0", "q4_0")]
    monkeypatch.setattr(costs_module, "ENCODABLE", frozenset(kinds))
    shard = open_gguf(nano_nemotron)
    name = "blk.0.attn_q.weight"
    found = type_costs(CostInputs({name: (shard, shard.tensor(name))}, {}, {}, np.ones(1)))
    assert kinds[0] not in found[name] and kinds[2] in found[name]


def test_probe_of_is_a_type_that_the_tensor_can_have() -> None:
    assert probe_of({IQ4_NL: 1.0, Q4_0: 2.0, Q3_K: 3.0}) == Q3_K
    assert probe_of({IQ4_NL: 1.0, Q4_0: 2.0}) == Q4_0
    assert probe_of({TYPE_ID["q5_1"]: 0.5, IQ4_NL: 1.0}) == TYPE_ID["q5_1"]


def test_prober_restores_a_replaced_tensor_bit_by_bit(nano_nemotron: Path) -> None:
    shard = open_gguf(nano_nemotron)
    with open_model(ModelSettings(nano_nemotron, n_ctx=64, replaceable=True)) as model:
        chunks = chunk_text(model, read_text(CALIBRATION), CHUNKS, "text")[:2]
        with open_prober(model, CHUNKS, {}) as prober:
            before = [logits.copy() for logits, _ in prober._predictions(chunks)]
            reference = prober.reference(chunks)
            for name in ("token_embd.weight", "blk.1.ffn_down.weight", "output.weight"):
                found = prober.divergences(shard, shard.tensor(name), Q4_0, chunks, reference)
                assert len(found) == 2 and min(found) > 1e-6
            after = [logits.copy() for logits, _ in prober._predictions(chunks)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_divergences_equal_those_of_a_file_with_the_tensor(
    nano_nemotron: Path, tmp_path: Path
) -> None:
    """The same number comes from a file in which this tensor's bytes are exchanged."""
    shard = open_gguf(nano_nemotron)
    info = shard.tensor("blk.1.ffn_down.weight")
    other = tmp_path / "other.gguf"
    content = bytearray(nano_nemotron.read_bytes())
    start = shard.data_offset + info.offset
    data = round_trip(info, shard.data(info), Q4_0, None, 1)
    content[start : start + info.nbytes] = data.tobytes()
    other.write_bytes(content)
    with open_model(ModelSettings(nano_nemotron, n_ctx=64, replaceable=True)) as model:
        chunks = chunk_text(model, read_text(CALIBRATION), CHUNKS, "text")[:1]
        with open_prober(model, CHUNKS, {}) as prober:
            reference = prober.reference(chunks)
            probed = prober.divergences(shard, info, Q4_0, chunks, reference)
    with (
        open_model(ModelSettings(other, n_ctx=64)) as model,
        open_prober(model, CHUNKS, {}) as prober,
    ):
        logits, targets = next(prober._predictions(chunks))
        whole = compare_chunk(prober._pool, logits[:-1], targets, reference[0]).kld.mean()
    assert probed == [pytest.approx(float(whole), rel=1e-9)]


def test_measure_sensitivity_resumes_from_its_file(
    settings: SensitivitySettings,
    measured: Sensitivity,
    few_types: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(event: Event) -> None:
        if event.stage == "sensitivity" and event.done > 40:
            raise KeyboardInterrupt

    again = replace(settings, output=settings.output.with_name("again.json"))
    monkeypatch.setattr("minitron_quant.mixed_precision.measurement_rounds._SAVE_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(again, stop)
    kept = read_sensitivity(again.output)
    assert not kept.complete and kept.chunks == 1
    resumed = measure_sensitivity(replace(again, resume=True))
    assert resumed.complete and resumed.chunks == 2
    assert resumed.tensors == measured.tensors == read_sensitivity(again.output).tensors


def test_measure_sensitivity_completes_the_importance_matrix(
    settings: SensitivitySettings, measured: Sensitivity
) -> None:
    matrix = read_imatrix(settings.imatrix_output)
    assert {"output.weight", "token_embd.weight", "blk.0.attn_q.weight"} <= matrix.entries.keys()
    assert set(matrix.weights()["token_embd.weight"].ravel()) == {1.0}


@pytest.mark.parametrize(("made_from", "collected"), [(1, 1), (3, 2), (0, 2)])
def test_complete_collects_the_output_from_part_of_a_long_text(
    made_from: int, collected: int, nano_nemotron: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "_ENOUGH", 2)
    info = open_gguf(nano_nemotron).tensor("output.weight")
    given = ImportanceMatrix(chunk_count=made_from, chunk_size=CHUNKS.n_ctx)
    collecting = CollectSettings((CALIBRATION,), CHUNKS)
    with open_model(ModelSettings(nano_nemotron, n_ctx=CHUNKS.n_ctx)) as model:
        found = importance.complete(given, model, {info.name: info}, collecting, ignore)
    assert found.entries.keys() == {"output.weight"}
    assert found.entries["output.weight"].counts.tolist() == [collected * CHUNKS.n_ctx]


def test_measure_sensitivity_stops_at_its_time_budget(
    settings: SensitivitySettings, measured: Sensitivity
) -> None:
    hurried = replace(settings, tokens=None, budget=1e-9, resume=True)
    assert measure_sensitivity(hurried).chunks == 2


def test_measure_sensitivity_estimates_layers_that_its_time_budget_leaves_out(
    settings: SensitivitySettings, measured: Sensitivity, few_types: None, tmp_path: Path
) -> None:
    again = replace(settings, output=tmp_path / "hurried.json", tokens=64)
    events: list[Event] = []
    hurried = measure_sensitivity(replace(again, budget=1e-9), events.append)
    assert hurried.complete and hurried.chunks == 1
    known = {name: each for name, each in hurried.tensors.items() if not each.estimated}

    def kind(name: str) -> str:
        return name.split(".", 2)[-1] if name.startswith("blk.") else name

    kinds = [*map(kind, known)]
    assert sorted(kinds) == sorted(set(map(kind, hurried.tensors)))
    for name, tensor in known.items():
        assert tensor.divergences == measured.tensors[name].divergences[:1]
    for name, tensor in hurried.tensors.items():
        same = next(each for key, each in known.items() if kind(key) == kind(name))
        assert tensor.alpha == pytest.approx(same.alpha)
    assert any(f"{len(hurried.tensors) - len(known)} of" in event.note for event in events)
    assert any("kinds of tensors takes about 1 min" in event.note for event in events)
    assert read_sensitivity(again.output).tensors == hurried.tensors
    resumed = measure_sensitivity(replace(again, resume=True))
    for name, tensor in resumed.tensors.items():
        assert tensor.divergences == measured.tensors[name].divergences[:1]
        assert not tensor.estimated


def test_measure_sensitivity_refuses_another_model_text_or_matrix(
    settings: SensitivitySettings, nano_llama: Path, measured: Sensitivity
) -> None:
    again = replace(settings, resume=True)
    with pytest.raises(Damaged, match="was measured on nano-nemotron"):
        measure_sensitivity(replace(again, model=nano_llama))
    with pytest.raises(Damaged, match="another text"):
        measure_sensitivity(replace(again, text=CALIBRATION))
    with pytest.raises(Damaged, match="another importance matrix"):
        measure_sensitivity(replace(again, imatrix=nano_llama))
    document = json.loads(settings.output.read_text()) | {"probe": "q4_0"}
    older = settings.output.with_name("older.json")
    older.write_text(json.dumps(document))
    with pytest.raises(Damaged, match="probe"):
        measure_sensitivity(replace(again, output=older))
    short = settings.output.with_name("short.txt")
    short.write_text("too short")
    with pytest.raises(Usage, match="two chunks"):
        measure_sensitivity(replace(settings, text=short))


@pytest.mark.parametrize("change", ["{", "[]", '{"format": 1}', "tensors", "nan"])
def test_read_sensitivity_refuses_damaged_files(
    settings: SensitivitySettings, measured: Sensitivity, tmp_path: Path, change: str
) -> None:
    document = json.loads(settings.output.read_text())
    path = tmp_path / "bad.json"
    if change == "tensors":
        document["tensors"] = {}
    elif change == "nan":
        next(iter(document["tensors"].values()))["probe_cost"] = float("nan")
    path.write_text(json.dumps(document) if change in ("tensors", "nan") else change)
    with pytest.raises(Damaged, match="not a sensitivity file"):
        read_sensitivity(path)
    with pytest.raises(NotFound):
        read_sensitivity(tmp_path / "none.json")

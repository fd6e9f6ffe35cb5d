"""Quantization with GPTQ: ordinary files of the same size, better, and resumable."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.support import EXAMPLES, quantize
from minitron_core.errors import Damaged, MinitronError, Usage
from minitron_core.gguf import TYPE, TYPE_ID, open_gguf
from minitron_core.progress import Event
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.loading import open_model
from minitron_quant.blocks import decode_blocks
from minitron_quant.chunking import ChunkSettings
from minitron_quant.covariance.collect import CovarianceSettings, collect_covariance
from minitron_quant.covariance.files import Covariance, open_covariance
from minitron_quant.gptq.cholesky import error_of, factor_block
from minitron_quant.gptq.encoder import GptqEncoder
from minitron_quant.gptq.held_out import GptqComparison, quantize_verified
from minitron_quant.levels import parse_levels
from minitron_quant.mixed_precision.error_shares import ErrorShares
from minitron_quant.mixed_precision.predict_kld import with_gptq
from minitron_quant.mixed_precision.sensitivity_file import Sensitivity, TensorSensitivity
from minitron_quant.perplexity.settings import MeasureSettings
from minitron_quant.quantize.prepare import QuantizeSettings, prepare
from minitron_quant.quantize.run import LevelResult, run

LEVELS = ("Q2_K", "Q4_0")


@pytest.fixture(scope="module")
def covariance(short_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("covariance") / "nano-llama.covariance.gguf"
    chunks = ChunkSettings(n_ctx=256, n_batch=512, limit=8, threads=1)
    with open_model(ModelSettings(short_llama, n_ctx=512)) as model:
        settings = CovarianceSettings((EXAMPLES / "calibration.txt",), chunks)
        collect_covariance(model, settings, path)
    return path


def encoder_of(model: Path, covariance: Path) -> GptqEncoder:
    return GptqEncoder(covariance, [open_gguf(model)])


@pytest.fixture(scope="module")
def made(
    short_llama: Path, covariance: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, LevelResult]:
    folder = tmp_path_factory.mktemp("gptq")
    return quantize(
        short_llama, folder, *LEVELS, refiner=encoder_of(short_llama, covariance), threads=2
    )


@pytest.fixture(scope="module")
def plain(short_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LevelResult]:
    return quantize(short_llama, tmp_path_factory.mktemp("plain"), *LEVELS)


def test_run_with_gptq_makes_ordinary_files_of_the_same_size(
    made: dict[str, LevelResult], plain: dict[str, LevelResult]
) -> None:
    for level in LEVELS:
        ours, theirs = open_gguf(made[level].path), open_gguf(plain[level].path)
        assert [(i.name, i.type, i.shape) for i in ours.tensors] == [
            (i.name, i.type, i.shape) for i in theirs.tensors
        ]
        assert ours.get("general.file_type") == theirs.get("general.file_type")
        assert ours.get("minitron.gptq.texts") == ["calibration.txt"]
        assert ours.get("minitron.gptq.tokens") == 8 * 256
        assert "minitron.gptq.texts" not in theirs.metadata
        with open_model(ModelSettings(made[level].path, n_ctx=64)) as model:
            assert model.n_vocab == 4096


def errors(path: Path, source: Path, covariance: Covariance) -> dict[str, float]:
    """e H eᵀ of every tensor, summed over its rows."""
    file, full = open_gguf(path), open_gguf(source)
    found = {}
    for name, taken in covariance.taken_by.items():
        info = file.tensor(name)
        shape = info.rows, info.shape[0]
        values = decode_blocks(full.tensor(name).type, full.data(full.tensor(name)), shape)
        blocks = [
            factor_block(start, covariance.mean(taken, start, (0, 1)), 0.01)
            for start, _ in covariance.edges(taken, info.shape[0])
        ]
        left = decode_blocks(info.type, file.data(info), shape) - values
        found[name] = float(error_of(left, blocks).sum())
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_run_with_gptq_lowers_the_error_of_every_tensor(
    level: str,
    short_llama: Path,
    made: dict[str, LevelResult],
    plain: dict[str, LevelResult],
    covariance: Path,
) -> None:
    opened = open_covariance(covariance)
    before = errors(plain[level].path, short_llama, opened)
    after = errors(made[level].path, short_llama, opened)
    ratios = [after[name] / before[name] for name in after]
    assert max(ratios) < 0.9
    assert np.median(ratios) < 0.6


class Stop(BaseException):
    pass


def test_run_with_gptq_resumed_gives_the_same_bytes_with_any_threads(
    short_llama: Path, made: dict[str, LevelResult], covariance: Path, tmp_path: Path
) -> None:
    settings = QuantizeSettings(short_llama, tuple(parse_levels(["Q4_0"])), tmp_path, threads=1)
    gptq = encoder_of(short_llama, covariance)

    def stop(event: Event) -> None:
        if event.done > event.total / 2:
            raise Stop

    with pytest.raises(Stop):
        list(run(prepare(settings, gptq), stop))
    results = list(run(prepare(settings, gptq)))
    assert [result.sha256 for result in results] == [made["Q4_0"].sha256]
    assert all(result.kept for result in run(prepare(settings, gptq)))


def test_run_with_gptq_does_not_keep_a_plain_file(
    short_llama: Path, covariance: Path, tmp_path: Path
) -> None:
    quantize(short_llama, tmp_path, "Q4_0")
    with pytest.raises(MinitronError, match="exists"):
        quantize(short_llama, tmp_path, "Q4_0", refiner=encoder_of(short_llama, covariance))


def test_prepare_uses_a_covariance_as_importance_matrix(
    short_llama: Path, covariance: Path, tmp_path: Path
) -> None:
    settings = QuantizeSettings(short_llama, tuple(parse_levels(["IQ2_XXS"])), tmp_path)
    types = prepare(settings, encoder_of(short_llama, covariance)).outputs[0].planned.types
    assert TYPE[types["blk.0.ffn_up.weight"]].name == "iq2_xxs"


def test_gptq_encoder_refuses_the_covariance_of_another_model(
    nano_nemotron: Path, covariance: Path
) -> None:
    with pytest.raises(Damaged, match="another model"):
        encoder_of(nano_nemotron, covariance)


def test_gptq_encoder_notes_and_damps_too_little_text(short_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "little.gguf"
    chunks = ChunkSettings(n_ctx=64, n_batch=128, limit=2, threads=1)
    with open_model(ModelSettings(short_llama, n_ctx=128)) as model:
        settings = CovarianceSettings((EXAMPLES / "calibration.txt",), chunks)
        collect_covariance(model, settings, path)
    gptq = GptqEncoder(path, [open_gguf(short_llama)])
    assert "128 tokens are few" in gptq.notes[0]
    dampings = [b.damping for b in gptq.blocks("blk.1.ffn_down.weight") or []]
    assert not dampings or min(dampings) >= 0.1


def test_gptq_encoder_damps_a_singular_covariance_and_warns(
    short_llama: Path, covariance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, mean = "blk.0.attn_q.weight", Covariance.mean

    def negative(self: Covariance, source: str, start: int, parts: tuple[int, ...]) -> Any:
        """With eigenvalues that no damping which is tried makes positive."""
        found = mean(self, source, start, parts)
        return found if source != name else np.full_like(found, 9) - 8.5 * np.eye(len(found))

    monkeypatch.setattr(Covariance, "mean", negative)
    monkeypatch.setattr(GptqEncoder, "_damping", lambda *_: 0.01)
    told: list[str] = []
    levels = tuple(parse_levels(["Q4_0"]))
    gptq = encoder_of(short_llama, covariance)
    job = prepare(QuantizeSettings(short_llama, levels, tmp_path), gptq)
    list(run(job, lambda event: told.append(event.note)))
    (note,) = filter(None, told)
    assert note.startswith(f"the covariance of the inputs of {name} is singular: the damping")
    assert all(block.damping > 0.01 for block in gptq.blocks(name) or [])


def test_quantize_verified_keeps_the_plain_file_unless_gptq_is_better(
    short_llama: Path, covariance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QuantizeSettings(short_llama, tuple(parse_levels(["Q4_0"])), tmp_path)
    gptq = encoder_of(short_llama, covariance)
    chunks = ChunkSettings(n_ctx=128, n_batch=256, limit=2, threads=1)
    held_out = MeasureSettings((), EXAMPLES / "held-out.txt", chunks, reference=short_llama)
    (made,) = quantize_verified(settings, gptq, held_out)
    assert made.comparison.better
    assert made.comparison.change_pct < -20
    assert made.comparison.difference.mean == pytest.approx(
        made.comparison.kld - made.comparison.baseline_kld
    )
    assert "minitron.gptq.texts" in open_gguf(made.result.path).metadata
    (again,) = quantize_verified(settings, gptq, held_out)
    assert again.result.kept
    assert again.comparison == made.comparison

    monkeypatch.setattr(GptqComparison, "better", False)
    (worse,) = quantize_verified(replace(settings, replace="outdated"), gptq, held_out)
    assert "minitron.gptq.texts" not in open_gguf(worse.result.path).metadata
    assert worse.result.bytes < made.result.bytes
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "nano-llama-Q4_0.gguf",
        "nano-llama-Q4_0.gptq.json",
        "nano-llama.manifest.json",
    ]


def test_quantize_verified_refuses_the_calibration_text(
    short_llama: Path, covariance: Path, tmp_path: Path
) -> None:
    settings = QuantizeSettings(short_llama, tuple(parse_levels(["Q4_0"])), tmp_path)
    gptq = encoder_of(short_llama, covariance)
    held_out = MeasureSettings((), EXAMPLES / "calibration.txt", ChunkSettings())
    with pytest.raises(Usage, match="proves nothing"):
        quantize_verified(settings, gptq, held_out)


def test_with_gptq_scales_costs_by_the_error_that_is_left(
    short_llama: Path, covariance: Path, tmp_path: Path
) -> None:
    gptq = GptqEncoder(covariance, [open_gguf(short_llama)])
    kinds = {TYPE_ID[name]: 2.0 for name in ("q4_0", "q3_K", "f16")}
    names = ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "token_embd.weight")
    tensors = {name: TensorSensitivity(kinds, 1.0, [1.0]) for name in names}
    plain = Sensitivity({}, {}, {}, 512, "q4_0", tensors)
    found = with_gptq(plain, ErrorShares(gptq, tmp_path / "shares.json")).tensors
    assert found["token_embd.weight"].costs == kinds
    shared = found["blk.0.attn_q.weight"].costs
    assert found["blk.0.attn_k.weight"].costs == shared  # q and k have one input
    assert shared[TYPE_ID["f16"]] == 2.0
    assert 0.2 < shared[TYPE_ID["q4_0"]] < 1.6
    assert plain.tensors["blk.0.attn_q.weight"].costs == kinds


def test_error_shares_are_measured_once(
    short_llama: Path, covariance: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gptq, path = GptqEncoder(covariance, [open_gguf(short_llama)]), tmp_path / "shares.json"
    name, kind = "blk.0.attn_q.weight", TYPE_ID["q4_0"]
    first = ErrorShares(gptq, path)
    share = first.of(name, kind)
    first.keep()
    other = GptqEncoder(covariance, [open_gguf(short_llama)])
    ErrorShares(other, path)
    assert other.dampings == gptq.dampings != {}
    monkeypatch.setattr(GptqEncoder, "gain", lambda *_: 7.0)
    again = ErrorShares(gptq, path)
    assert again.of(name, kind) == share != 7
    assert again.of(name, TYPE_ID["q5_0"]) == 7
    path.write_bytes(path.read_bytes().replace(b"q4_0", b"q4_1"))
    assert ErrorShares(gptq, path).of(name, kind) == 7
    monkeypatch.setattr(GptqEncoder, "made_from", "another covariance")
    first.of(name, TYPE_ID["q6_K"])
    first.keep()
    assert ErrorShares(gptq, path).of(name, kind) == 7


def test_error_shares_work_where_the_folder_is_not_writable(
    short_llama: Path, covariance: Path, tmp_path: Path
) -> None:
    shares = ErrorShares(GptqEncoder(covariance, [open_gguf(short_llama)]), tmp_path / "no" / "x")
    assert shares.of("blk.0.attn_q.weight", TYPE_ID["f16"]) == 1
    shares.keep()

"""Quantization: every tensor as llama-quantize encodes it, and options."""

import ctypes
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import tiny_gguf
from helpers.support import RECORDED, library_quantize, quantize, recorded
from minitron_core.errors import Damaged, ImatrixNeeded, Unsupported, Usage
from minitron_core.gguf import TYPE, TYPE_ID, Gguf, KeyValue, TensorInfo, open_gguf
from minitron_engine.llama.binding import api
from minitron_quant.imatrix.files import read_imatrix, write_imatrix
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix
from minitron_quant.levels import LEVELS, OTHER_LEVELS, level_named, parse_levels
from minitron_quant.quantize import encode, plan
from minitron_quant.quantize.options import QuantizeOptions, parse_override, parse_tensor_type
from minitron_quant.quantize.prepare import QuantizeSettings, model_name, prepare
from minitron_quant.quantize.run import LevelResult

LLAMA_IMATRIX = RECORDED / "nano-llama.imatrix.gguf"
CHEAP = ("Q4_0", "Q8_0", "Q4_K_M")


def hashes(file: Gguf) -> dict[str, tuple[str, str]]:
    return {
        info.name: (TYPE[info.type].name, hashlib.sha256(file.data(info)).hexdigest())
        for info in file.tensors
    }


def expected_hashes(entry: dict[str, Any], table: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {name: (kind, table[name][kind]) for name, kind in entry["types"].items()}


@pytest.mark.parametrize("level", [level.name for level in LEVELS])
@pytest.mark.parametrize("model", ["llama", "nemotron"])
def test_run_makes_every_tensor_as_llama_quantize(
    model: str,
    level: str,
    llama_levels: dict[str, LevelResult],
    nemotron_levels: dict[str, LevelResult],
) -> None:
    results = llama_levels if model == "llama" else nemotron_levels
    recording = recorded(f"quantize-nano-{model}.json")
    wanted = expected_hashes(recording["levels"][level], recording["hashes"])
    assert hashes(open_gguf(results[level].path)) == wanted


def test_run_without_imatrix_makes_every_tensor_as_llama_quantize(
    nano_llama: Path, tmp_path: Path
) -> None:
    recording = recorded("quantize-nano-llama.json")
    plain = {k: v for k, v in recording["levels_without_imatrix"].items() if "refused" not in v}
    names = [name for name in plain if name in ("Q2_K", "IQ4_XS", "Q3_K_M", "Q4_0", "Q6_K")]
    results = quantize(nano_llama, tmp_path, *names)
    for name in names:
        wanted = expected_hashes(plain[name], recording["hashes_without_imatrix"])
        assert hashes(open_gguf(results[name].path)) == wanted


GUIDED = ("IQ2_XS", "Q2_K_S", "IQ3_M", "Q4_K_M", "Q5_1", "Q8_0")


@pytest.fixture(scope="module")
def guided(short_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, LevelResult]:
    return quantize(short_llama, tmp_path_factory.mktemp("guided"), *GUIDED, imatrix=LLAMA_IMATRIX)


@pytest.mark.parametrize("level", GUIDED)
def test_run_makes_tensors_as_the_installed_library(
    level: str, short_llama: Path, guided: dict[str, LevelResult], tmp_path: Path
) -> None:
    library_quantize(short_llama, tmp_path / "theirs.gguf", level, LLAMA_IMATRIX)
    assert hashes(open_gguf(guided[level].path)) == hashes(open_gguf(tmp_path / "theirs.gguf"))


@pytest.mark.parametrize("level", ["Q4_0", "Q3_K_L", "BF16", "F32", "TQ2_0"])
def test_run_makes_whole_files_as_the_installed_library(
    level: str, nano_nemotron: Path, tmp_path: Path
) -> None:
    ours = quantize(nano_nemotron, tmp_path, level)[level].path
    library_quantize(nano_nemotron, tmp_path / "theirs.gguf", level, None)
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("level", [level for level in LEVELS if level.needs_imatrix])
def test_prepare_refuses_levels_that_need_an_imatrix(
    level: Any, short_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(ImatrixNeeded) as caught:
        prepare(QuantizeSettings(short_llama, (level,), tmp_path))
    assert caught.value.exit_code == 5
    assert "-f TEXT" in caught.value.hint


def test_prepare_refuses_an_imatrix_that_lacks_a_tensor(short_llama: Path, tmp_path: Path) -> None:
    matrix = read_imatrix(LLAMA_IMATRIX)
    del matrix.entries["blk.1.ffn_up.weight"]
    write_imatrix(tmp_path / "holes.gguf", matrix)
    settings = QuantizeSettings(
        short_llama, tuple(parse_levels(["IQ2_XS"])), tmp_path, imatrix=tmp_path / "holes.gguf"
    )
    with pytest.raises(ImatrixNeeded, match=r"blk\.1\.ffn_up"):
        prepare(settings)


def test_prepare_refuses_the_imatrix_of_another_model(short_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(Damaged, match=r"made for another model|values for"):
        quantize(short_llama, tmp_path, "Q4_K_M", imatrix=RECORDED / "nano-nemotron.imatrix.gguf")


def test_run_applies_options_of_types(short_llama: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(
        pure=True, output_type=TYPE_ID["q8_0"], embedding_type=TYPE_ID["q5_0"]
    )
    file = open_gguf(quantize(short_llama, tmp_path, "Q4_0", options=options)["Q4_0"].path)
    kinds = {info.name: TYPE[info.type].name for info in file.tensors}
    assert kinds["output.weight"] == "q8_0" and kinds["token_embd.weight"] == "q5_0"
    matrices = {name for name in kinds if name.startswith("blk.") and "norm" not in name}
    assert {kinds[name] for name in matrices} == {"q4_0"}


def test_parse_override_keeps_the_sign(short_llama: Path, tmp_path: Path) -> None:
    overrides = tuple(
        map(parse_override, ("a.int=int:-3", "a.big=int:7", "a.flag=bool:true", "a.text=str:x y"))
    )
    options = QuantizeOptions(overrides=overrides)
    file = open_gguf(quantize(short_llama, tmp_path, "Q4_0", options=options)["Q4_0"].path)
    assert [file.get(f"a.{key}") for key in ("int", "big", "flag", "text")] == [-3, 7, True, "x y"]


@pytest.mark.parametrize("text", ["", "a", "a=b", "a=int", "a=int:x", "a=bool:yes", "=int:1"])
def test_parse_override_refuses_malformed_text(text: str) -> None:
    with pytest.raises(Usage):
        parse_override(text)


@pytest.mark.parametrize("text", ["attn_v", "=q8_0", "attn_v=", "attn_v=q99", "(=q8_0"])
def test_parse_tensor_type_refuses_malformed_text(text: str) -> None:
    with pytest.raises(Usage):
        parse_tensor_type(text)


def test_prepare_refuses_patterns_that_match_nothing(short_llama: Path, tmp_path: Path) -> None:
    options = QuantizeOptions(tensor_types=(("atn_v", TYPE_ID["q8_0"]),))
    with pytest.raises(Usage, match="matches no tensor"):
        quantize(short_llama, tmp_path, "Q4_0", options=options)
    with pytest.raises(Usage, match="atn_v"):
        quantize(short_llama, tmp_path, "Q4_0", imatrix=LLAMA_IMATRIX, exclude=("atn_v",))


def test_run_encodes_excluded_weights_without_importance(short_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "excluded"
    path = quantize(short_llama, folder, "Q4_K_M", imatrix=LLAMA_IMATRIX, exclude=("ffn_up",))[
        "Q4_K_M"
    ].path
    plain = quantize(short_llama, tmp_path / "plain", "Q4_K_M")["Q4_K_M"].path
    ours, without = hashes(open_gguf(path)), hashes(open_gguf(plain))
    assert ours["blk.1.ffn_up.weight"] == without["blk.1.ffn_up.weight"]
    assert ours["blk.1.ffn_gate.weight"] != without["blk.1.ffn_gate.weight"]


def test_prepare_refuses_a_quantized_source_without_permission(
    llama_levels: dict[str, LevelResult], tmp_path: Path
) -> None:
    source = llama_levels["Q8_0"].path
    with pytest.raises(Unsupported, match="already quantized"):
        quantize(source, tmp_path, "Q4_0")
    options = QuantizeOptions(allow_requantize=True)
    result = quantize(source, tmp_path, "Q4_0", options=options)["Q4_0"]
    library = tmp_path / "theirs.gguf"
    parameters = api.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = level_named("Q4_0").ftype, True
    assert api.llama_model_quantize(bytes(source), bytes(library), ctypes.byref(parameters)) == 0
    assert hashes(open_gguf(result.path)) == hashes(open_gguf(library))


def test_prepare_refuses_a_requested_type_that_rows_do_not_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_gguf, "FFN", 160)
    source = tiny_gguf.write_tiny(tmp_path / "odd-F16.gguf")
    options = QuantizeOptions(tensor_types=(parse_tensor_type("ffn_down=q4_K"),))
    with pytest.raises(Unsupported, match=r"blk\.0\.ffn_down\.weight has rows of 160"):
        quantize(source, tmp_path / "out", "Q4_0", options=options)
    # what nobody asked for falls back to a type that fits, as in llama-quantize
    ours = quantize(source, tmp_path / "out", "Q4_K_M")["Q4_K_M"].path
    library_quantize(source, tmp_path / "theirs.gguf", "Q4_K_M", None)
    assert ours.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("level", ["Q4_K_M", "Q2_K", "MXFP4_MOE"])
def test_run_makes_experts_as_the_installed_library(level: str, tmp_path: Path) -> None:
    source = tiny_gguf.write_tiny(tmp_path / "moe-F16.gguf", experts=3)
    random = np.random.default_rng(3)
    entries = {}
    for info in open_gguf(source).tensors:
        if len(info.shape) > 1 and info.name.startswith("blk."):
            count = info.shape[2] if len(info.shape) > 2 else 1
            sums = random.gamma(1.0, 1.0, (count, info.shape[0])).astype(np.float32)
            entries[info.name] = Entry(sums, np.ones(count, np.int64))
    imatrix = tmp_path / "imatrix.gguf"
    write_imatrix(imatrix, ImportanceMatrix(entries, ["random"], 1, 512))
    ours = quantize(source, tmp_path / "out", level, imatrix=imatrix)[level].path
    library_quantize(source, tmp_path / "theirs.gguf", level, imatrix)
    found = hashes(open_gguf(ours))
    assert found == hashes(open_gguf(tmp_path / "theirs.gguf"))
    # the importance of each expert matters
    if level != "MXFP4_MOE":
        entries["blk.0.ffn_up_exps.weight"].sums[:] = entries["blk.0.ffn_up_exps.weight"].sums[0]
        write_imatrix(imatrix, ImportanceMatrix(entries, ["random"], 1, 512))
        alike = quantize(source, tmp_path / "alike", level, imatrix=imatrix)[level].path
        assert (
            hashes(open_gguf(alike))["blk.0.ffn_up_exps.weight"]
            != (found["blk.0.ffn_up_exps.weight"])
        )


@pytest.mark.parametrize("kind", ["q4_K", "iq2_xs", "q8_K"])
def test_check_type_refuses_a_type_that_a_row_cannot_hold(
    kind: str,
) -> None:
    # llama.cpp falls back by itself; a type forced on the embedding or output it does not check
    odd = TensorInfo("token_embd.weight", (100 if kind != "q8_K" else 256, 4), 1, 0, 800)
    with pytest.raises(Unsupported, match="cannot hold"):
        plan.check_type(odd, TYPE_ID[kind], QuantizeOptions(), level_named("Q4_0"))
    with pytest.raises(Usage, match="tensors cannot be encoded"):
        parse_tensor_type("attn_v=q8_k")


def test_run_with_small_slabs_gives_the_same_bytes(
    short_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantize(short_llama, tmp_path / "a", *CHEAP)
    monkeypatch.setattr(encode, "SLAB_ELEMENTS", 5000)
    parts = quantize(short_llama, tmp_path / "b", *CHEAP, threads=3)
    assert {n: r.sha256 for n, r in whole.items()} == {n: r.sha256 for n, r in parts.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nano-llama-F16.gguf", "nano-llama"),
        ("Width-4.5B-BF16-00001-of-00003.gguf", "Width-4.5B"),
        ("model.f32.gguf", "model"),
        ("Thing-Q8_0.gguf", "Thing-Q8_0"),
    ],
)
def test_model_name_drops_shard_and_type(name: str, expected: str) -> None:
    assert model_name(Path(name)) == expected


def test_parse_levels_in_any_case_once_each() -> None:
    assert len(parse_levels(["all"])) == 27
    assert [level.name for level in parse_levels(["q4_k", "Q4_K_M", "iq1_s"])] == [
        "Q4_K_M",
        "IQ1_S",
    ]
    assert len({level.ftype for level in LEVELS + OTHER_LEVELS}) == len(LEVELS + OTHER_LEVELS)
    with pytest.raises(Unsupported) as caught:
        parse_levels(["Q4_K_X"])
    assert "Q4_K" in caught.value.hint and caught.value.exit_code == 4


def test_encode_takes_the_importance_of_each_expert(tmp_path: Path) -> None:
    rows, columns, experts = 4, 256, 3
    values = np.random.default_rng(1).standard_normal((experts, rows, columns)).astype(np.float32)
    weights = np.random.default_rng(2).random((experts, columns)).astype(np.float32)
    info = TensorInfo("blk.0.ffn_up_exps.weight", (columns, rows, experts), 0, 0, values.nbytes)
    kind = TYPE_ID["q4_K"]
    task = encode.EncodeTask(info, values.reshape(-1).view(np.uint8), (kind,), weights)
    (slab,) = encode.encode([task], 2)
    for expert in range(experts):
        alone = TensorInfo("w", (columns, rows), 0, 0, values[0].nbytes)
        one = encode.EncodeTask(
            alone, values[expert].reshape(-1).view(np.uint8), (kind,), weights[expert : expert + 1]
        )
        (expected,) = encode.encode([one], 1)
        size = expected.blocks[kind].size
        got = slab.blocks[kind][expert * size : (expert + 1) * size]
        np.testing.assert_array_equal(got, expected.blocks[kind])


def test_level_metadata_puts_overrides_last(short_llama: Path, tmp_path: Path) -> None:
    override = KeyValue.of("general.name", 8, "Renamed")
    options = QuantizeOptions(overrides=(override,))
    file = open_gguf(quantize(short_llama, tmp_path, "Q4_0", options=options)["Q4_0"].path)
    assert list(file.metadata)[-1] == "general.name" and file.get("general.name") == "Renamed"


def test_prepare_notes_layers_without_an_entry(short_llama: Path, tmp_path: Path) -> None:
    matrix = read_imatrix(LLAMA_IMATRIX)
    del matrix.entries["blk.1.ffn_up.weight"]
    write_imatrix(tmp_path / "holes.gguf", matrix)
    levels = tuple(parse_levels(["Q4_0"]))
    job = prepare(QuantizeSettings(short_llama, levels, tmp_path, imatrix=tmp_path / "holes.gguf"))
    assert "blk.1.ffn_up.weight" in job.notes[0]
    whole = prepare(QuantizeSettings(short_llama, levels, tmp_path, imatrix=LLAMA_IMATRIX))
    assert whole.notes == ()

"""Checkpoints in FP8 are read as the values they stand for; other quantized ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_checkpoints import make_checkpoint, source_tensors
from minitron_convert.checkpoint.fp8 import E4M3_VALUES
from minitron_convert.checkpoint.safetensors import read_header
from minitron_convert.convert import ConvertSettings, convert
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import F32, open_gguf

UP = "model.layers.1.mlp.up_proj.weight"  # 96 rows of 64


def value_of(byte: int) -> float:
    """A number of E4M3, from its definition."""
    sign, exponent, mantissa = (-1) ** (byte >> 7), (byte >> 3) & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return float(sign * mantissa / 8 * 2.0**-6)
    return float(sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def test_e4m3_values_follow_the_definition() -> None:
    wanted = np.array([value_of(byte) for byte in range(256)], np.float32)
    assert np.array_equal(E4M3_VALUES, wanted, equal_nan=True)


def quantized(
    folder: Path, scale: str, shape: tuple[int, ...], config: dict[str, Any], dtype: str = "F32"
) -> Path:
    """A Qwen3 of which one matrix is in FP8."""
    shapes = source_tensors("qwen3")
    shapes[UP] = ("F8_E4M3", shapes[UP][1])
    shapes[f"{UP}{scale}"] = (dtype, shape)
    shapes["model.layers.0.self_attn.k_proj.k_scale"] = ("F32", ())
    shapes[UP.replace("weight", "input_scale")] = ("F32", (1,))
    return make_checkpoint("qwen3", folder, {"quantization_config": config}, shapes)


BLOCKS = {"quant_method": "fp8", "weight_block_size": [32, 24]}


@pytest.mark.parametrize(
    ("scale", "shape", "block", "config", "dtype"),
    [
        ("_scale_inv", (3, 3), (32, 24), BLOCKS, "F32"),
        ("_scale_inv", (3, 3), (32, 24), BLOCKS, "BF16"),
        ("_scale_inv", (1, 1), (128, 128), {"quant_method": "fp8"}, "F32"),
        ("_scale", (), (96, 64), {"quant_method": "modelopt", "quant_algo": "FP8"}, "F32"),
        (
            "_scale",
            (96, 1),
            (1, 64),
            {"quant_method": "compressed-tensors", "format": "float-quantized"},
            "BF16",
        ),
    ],
)
def test_convert_scales_fp8_exactly(
    scale: str,
    shape: tuple[int, ...],
    block: tuple[int, int],
    config: dict[str, Any],
    dtype: str,
    tmp_path: Path,
) -> None:
    folder = quantized(tmp_path, scale, shape, config, dtype)
    tensors = {t.name: t for t in read_header(folder / "model.safetensors")}
    stored, scales = tensors[UP].read(), tensors[f"{UP}{scale}"].read()
    if dtype == "BF16":
        scales = (scales.astype(np.uint32) << 16).view(np.float32)
    grid = scales.reshape(-(-96 // block[0]), -(-64 // block[1]))
    wanted = np.array(
        [
            [
                np.float32(value_of(int(stored[i, j]))) * grid[i // block[0], j // block[1]]
                for j in range(64)
            ]
            for i in range(96)
        ],
        np.float32,
    )
    model = open_gguf(convert(ConvertSettings(folder, tmp_path, "f32")).paths[0])
    info = model.tensor("blk.1.ffn_up.weight")
    assert info.type == F32
    assert model.data(info).tobytes() == wanted.tobytes()
    assert len(model.tensors) == len(source_tensors("qwen3"))


@pytest.mark.parametrize(
    ("scale", "shape", "words"),
    [("_scale_inv", (4, 3), "does not fit"), ("_zero", (3, 3), "no scale")],
)
def test_convert_refuses_fp8_without_fitting_scales(
    scale: str, shape: tuple[int, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(Damaged, match=words):
        convert(ConvertSettings(quantized(tmp_path, scale, shape, BLOCKS), tmp_path))


@pytest.mark.parametrize("block", [5, 2.5, "16", [16], [0, 16], [True, 1], {"a": 1, "b": 2}])
def test_convert_refuses_blocks_that_are_none(block: Any, tmp_path: Path) -> None:
    config = {**BLOCKS, "weight_block_size": block}
    with pytest.raises(Damaged, match="does not fit"):
        convert(ConvertSettings(quantized(tmp_path, "_scale_inv", (3, 3), config), tmp_path))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "PACK-QUANTIZED"),
    ],
)
def test_check_quantization_refuses_other_types(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = make_checkpoint("qwen3", tmp_path, {"quantization_config": config})
    with pytest.raises(Unsupported, match=words):
        convert(ConvertSettings(folder, tmp_path))


def test_check_quantization_names_the_unquantized_release(tmp_path: Path) -> None:
    folder = make_checkpoint("nemotron-3-nano-30b", tmp_path)
    published = folder.rename(tmp_path / "NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4")
    told = {"quantization": {"quant_algo": "NVFP4"}}
    (published / "hf_quant_config.json").write_text(json.dumps(told))
    with pytest.raises(Unsupported, match="NVFP4") as caught:
        convert(ConvertSettings(published, tmp_path))
    assert "NVIDIA-Nemotron-3-Nano-30B-A3B or " in caught.value.hint


def test_read_model_refuses_nemotron_flash_by_name(tmp_path: Path) -> None:
    flash = {"architectures": ["NemotronFlashForCausalLM"]}
    with pytest.raises(Unsupported, match="Nemotron-Flash"):
        convert(ConvertSettings(make_checkpoint("qwen3", tmp_path, flash), tmp_path))

"""Checkpoints that are quantized already: which can be read, and what to say of the others."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from minitron_convert.checkpoint.json_files import read_optional
from minitron_core.errors import Unsupported

# As releases are named; what they were made from has the same name without it.
_SUFFIX = re.compile(
    r"[-_](?:NVFP4|MXFP4|FP4|W4A16|AWQ|GPTQ|Int4|Int8|bnb-4bit|4bit|8bit)\b.*", re.I
)


def quantization_of(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What config.json or hf_quant_config.json says of quantization; empty for full precision."""
    stated = config.get("quantization_config")
    if isinstance(stated, dict) and stated:
        return stated
    inner = read_optional(folder / "hf_quant_config.json").get("quantization")
    return {"quant_method": "modelopt", **inner} if isinstance(inner, dict) else {}


def check_quantization(folder: Path, config: dict[str, Any], readable: tuple[str, ...]) -> None:
    """Unsupported for a checkpoint that is quantized in a way other than FP8 or `readable`."""
    stated = quantization_of(folder, config)
    method = str(stated.get("quant_method", "")).lower()
    algorithm = str(stated.get("quant_algo", "")).upper()
    eight_bit_floats = (
        method == "fp8"
        or (method == "modelopt" and algorithm.startswith("FP8"))
        or (method == "compressed-tensors" and stated.get("format") == "float-quantized")
    )
    if not stated or eight_bit_floats or method in readable:
        return
    kind = algorithm or str(stated.get("format") or method).upper() or "an unknown way"
    base = _SUFFIX.sub("", folder.resolve().name)
    shorter = base != folder.resolve().name
    named = f"{base} or {base}-BF16" if shorter else "the same name without the type in it"
    raise Unsupported(
        f"{folder} is quantized already ({kind}), and quantizing twice costs quality",
        f"convert the release that it was made from: {named}",
    )

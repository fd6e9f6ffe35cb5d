"""Compare logits of converted tiny checkpoints with transformers', for every architecture.

    python benchmarks/architecture_logits.py --transformers-python EXE [NAME …]

EXE is a Python with torch and transformers; given several times, the first is tried first, and the
next for what it does not support. Weights are random; norms are around one, so that
scores are large enough for positions to matter. Files are f32, and MXFP4 experts are decoded,
because llama.cpp's product rounds the other factor of quantized weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import EXAMPLES

sys.path.append(str(EXAMPLES.parent / "tests"))

from helpers.raw_llama import llama_logits
from helpers.tiny_checkpoints import NAMES, make_checkpoint
from minitron_convert.checkpoint.safetensors import read_header
from minitron_convert.convert import ConvertSettings, convert
from minitron_convert.encode import decode
from minitron_core.gguf import F32, TYPE_ID, GgufWriter, TensorSpec, open_gguf

PEER = Path(__file__).parent / "peers" / "transformers_logits.py"
N_TOKENS = 200  # more than the windows of layers that have one
AROUND_ZERO = ("gemma2", "gemma3")  # these add one to the weights of norms themselves
MXFP4 = TYPE_ID["mxfp4"]
# Where a tiny config is unlike any that was published, or unlike what both sides can compute.
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "exaone4": (
        {"sliding_window": None, "layer_types": ["full_attention"] * 4},
        "as EXAONE-4.0-1.2B: llama.cpp has windows in models of 64 layers only",
    ),
    "gpt-oss": (
        {"truncate": True},
        "bounds of yarn rounded: llama.cpp always rounds them, gpt-oss does not (then 7e-2)",
    ),
    "nemotron-h-8b": ({"head_dim": 16}, "head_dim under the name that transformers 5 reads"),
    "olmo3": (
        {"rope_theta": 500000.0},
        "base as published: transformers 5.23.0 computes layers with windows with no other",
    ),
    "olmoe": ({"rms_norm_eps": 1e-5}, "epsilon as published; llama.cpp's files always have it"),
    "phi4-mini": ({"pad_token_id": 0}, "a padding token within the vocabulary"),
    "smollm3": ({"pad_token_id": 0}, "a padding token within the vocabulary"),
}
REMARKS = {
    "gemma2": "GELU from a table in f16",
    "gemma3": "GELU from a table in f16",
    "starcoder2": "GELU from a table in f16",
    "nemotron-super-49b": "Llama's layers, put together by block_configs",
    "apertus": "its xIELU weights have another shape in transformers 5.23.0",
    "deepseek3-fp8": "transformers computes FP8 on a GPU only",
    "qwen3-fp8": "transformers computes FP8 on a GPU only",
    "exaone3": "not in transformers",
    "nemotron-3-puzzle-75b": "not in transformers",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--transformers-python", metavar="EXE", action="append", required=True)
    options = parser.parse_args()
    tokens = np.random.default_rng(5).integers(300, 4000, N_TOKENS)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        np.save(work / "tokens.npy", tokens)
        folders = {name: lively(name, work) for name in options.names}
        for python in options.transformers_python:
            left = [path for path in folders.values() if not (path / "logits.npy").exists()]
            command = [python, PEER, work / "tokens.npy", *left]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        print("| checkpoint | transformers | difference | likeliest token agrees | remark |")
        print("|---|---|---:|---:|---|")
        for name, folder in folders.items():
            remark = REMARKS.get(name) or CHANGES.get(name, ({}, ""))[1]
            print(f"| {name} | {compare(folder, tokens.tolist())} | {remark} |", flush=True)


def lively(name: str, work: Path) -> Path:
    """The tiny checkpoint with norms around one."""
    folder = make_checkpoint(name, work)
    config = json.loads((folder / "config.json").read_text())
    for key, value in CHANGES.get(name, ({}, ""))[0].items():
        (config["rope_scaling"] if key == "truncate" else config)[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    path = folder / "model.safetensors"
    for tensor in read_header(path) if name not in AROUND_ZERO else ():
        if "norm" in tensor.name and tensor.name.endswith("weight"):
            bits = np.memmap(path, np.uint16, "r+", tensor.offset, tensor.shape)
            values = (bits.astype(np.uint32) << 16).view(np.float32) + 1
            bits[:] = values.view(np.uint32) >> 16
    return folder


def compare(folder: Path, tokens: list[int]) -> str:
    """Version, largest difference over the largest logit, and how often the likeliest agrees."""
    if not (folder / "logits.npy").exists():
        return "none | | "
    theirs = np.load(folder / "logits.npy")
    settings = ConvertSettings(folder, folder, "f32", name="tiny")
    ours = llama_logits(decoded(convert(settings).paths[0]), tokens)[:, : theirs.shape[1]]
    difference = np.abs(ours - theirs).max() / np.abs(theirs).max()
    agrees = (ours.argmax(-1) == theirs.argmax(-1)).mean()
    return f"{(folder / 'version.txt').read_text()} | {difference:.1e} | {agrees:.1%}"


def decoded(path: Path) -> Path:
    """The file with MXFP4 tensors as f32."""
    model = open_gguf(path)
    if not any(info.type == MXFP4 for info in model.tensors):
        return path
    types = [F32 if info.type == MXFP4 else info.type for info in model.tensors]
    specs = [
        TensorSpec(t.name, t.shape, kind) for t, kind in zip(model.tensors, types, strict=True)
    ]
    path = path.with_name("decoded.gguf")
    with GgufWriter(path, list(model.metadata.values()), specs) as writer:
        for info in model.tensors:
            data = model.data(info)
            writer.write(decode(data, MXFP4) if info.type == MXFP4 else data)
    return path


if __name__ == "__main__":
    main()

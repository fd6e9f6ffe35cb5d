"""Record what llama.cpp's convert_hf_to_gguf.py makes of checkpoints, for the tests.

Run with a Python that has torch, transformers and sentencepiece:

    python benchmarks/peers/record_convert.py LLAMA_CPP [--published FOLDER] [--out FOLDER]

LLAMA_CPP is the source folder at the commit given with --commit. The converter knows a BPE
pre-tokenizer by a hash that nano-llama's is not among: its look-up is made to answer "llama-bpe"
where it knows no answer. Nothing else is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

from helpers.synthetic_checkpoints import VARIANTS, make_checkpoint

ROOT = Path(__file__).resolve().parents[2]
OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")
PUBLISHED = {
    "Llama-3.1-Minitron-4B-Width-Base": "llama3.1",
    "Llama-3.1-Minitron-4B-Depth-Base": "llama3.1",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("--commit", default="0c1e57098")
    parser.add_argument("--published", type=Path, help="folder with nvidia-configs and tokenizers")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "data" / "convert")
    options = parser.parse_args()
    prepare(options.llama_cpp)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for model in ("nano-llama", "nano-nemotron"):
            runs = [["--outtype", outtype] for outtype in OUTTYPES]
            runs += [["--outtype", "f16", "--split-max-size", "4M"], ["--vocab-only"]]
            record(options, model, ROOT / "examples" / model, runs)
        for variant in VARIANTS:
            folder = make_checkpoint(variant, work, ROOT / "examples")
            record(options, variant, folder, [["--outtype", outtype] for outtype in OUTTYPES])
        for model, tokenizer in PUBLISHED.items() if options.published else ():
            folder = make_published(options.published, model, tokenizer, work)
            record(options, f"{model}.vocab", folder, [["--vocab-only"]])


def prepare(llama_cpp: Path) -> None:
    """Make the converter importable, with the one change described above."""
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    logging.disable(logging.CRITICAL)
    from conversion.base import TextModel

    look_up = TextModel.get_vocab_base_pre

    def answer(self: Any, tokenizer: Any) -> str:
        try:
            return look_up(self, tokenizer)
        except NotImplementedError:
            return "llama-bpe"

    TextModel.get_vocab_base_pre = answer


def make_published(given: Path, model: str, tokenizer: str, work: Path) -> Path:
    """A published config with its tokenizer, without weights."""
    folder = work / model
    folder.mkdir()
    for path in (*(given / "tokenizers" / tokenizer).glob("*.json"),):
        shutil.copyfile(path, folder / path.name)
    for path in (given / "nvidia-configs" / model).glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    # The converter wants weights even for a vocabulary: an empty file of them is enough.
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def record(options: argparse.Namespace, name: str, folder: Path, runs: list[list[str]]) -> None:
    """Convert `folder` once per run and write what came out."""
    found = {
        "llama_cpp": options.commit,
        "command": "convert_hf_to_gguf.py MODEL --outfile FOLDER (and the options of each run)",
        "changed": "get_vocab_base_pre answers llama-bpe for unknown tokenizers",
        "runs": {},
    }
    for run in runs:
        with tempfile.TemporaryDirectory() as out:
            convert(options.llama_cpp, folder, Path(out), run)
            files = sorted(Path(out).iterdir())
            found["runs"][" ".join(run)] = [describe(path) for path in files]
    text = json.dumps(found, indent=None, separators=(",", ":"))
    text = text.replace('{"name"', '\n{"name"').replace('"metadata":', '\n"metadata":')
    (options.out / f"{name}.json").write_text(text + "\n")
    print(name, {run: [file["name"] for file in files] for run, files in found["runs"].items()})


def convert(llama_cpp: Path, folder: Path, out: Path, run: list[str]) -> None:
    """Run the converter in this process."""
    program = llama_cpp / "convert_hf_to_gguf.py"
    sys.argv = [str(program), str(folder), "--outfile", str(out), *run]
    os.environ["HF_HUB_OFFLINE"] = "1"
    runpy.run_path(str(program), run_name="__main__")


def describe(path: Path) -> dict[str, Any]:
    """A file's bytes, keys and tensors as checksums, read by gguf-py."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    # The reader shows the header's three fields as keys too.
    fields = [field for key, field in reader.fields.items() if not key.startswith("GGUF.")]
    return {
        "name": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "metadata": {field.name: describe_field(field) for field in fields},
        "tensors": [
            [
                tensor.name,
                tensor.shape.tolist(),
                int(tensor.tensor_type),
                hashlib.sha256(tensor.data.tobytes()).hexdigest(),
            ]
            for tensor in reader.tensors
        ],
    }


def describe_field(field: Any) -> list[Any]:
    """A key's type, its value (the number of elements for an array), the checksum of its bytes."""
    raw = b"".join(part.tobytes() for part in field.parts[3:])
    array = len(field.types) > 1
    value = len(field.data) if array else field.contents()
    return [int(field.types[0]), value, hashlib.sha256(raw).hexdigest()]


if __name__ == "__main__":
    main()

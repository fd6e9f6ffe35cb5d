"""Record what convert_hf_to_gguf.py makes of the tiny checkpoints of every architecture.

Run with a Python that has torch, transformers 4.57.6 (as llama.cpp pins it) and sentencepiece:

    python benchmarks/peers/record_architectures.py LLAMA_CPP [NAME …]

LLAMA_CPP is the source folder at the commit given with --commit. The descriptions in
tests/data/convert/tiny keep their config and their list of tensors; keys, tensors and the hashes
of whole files are written. The look-up of the BPE pre-tokenizer answers "llama-bpe" for the
stubs' vocabulary, which it does not know. Nothing else is changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from record_convert import ROOT, convert, prepare

sys.path.append(str(ROOT / "tests"))

from helpers.tiny_checkpoints import LONG, NAMES, TINY, description, make_checkpoint

# Families that differ in what they do to tensors: these are converted to other types as well.
IN_OTHER_TYPES = (
    "apertus",
    "deepseek2-lite",
    "gemma3",
    "gpt-oss",
    "granite4-h",
    "lfm2moe",
    "nemotron-3-super-120b",
    "nemotron-h-8b",
    "phi3",
    "qwen3moe",
)
OTHER_TYPES = ("f16", "q8_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--commit", default="0c1e57098")
    options = parser.parse_args()
    prepare(options.llama_cpp)
    import transformers

    for name in options.names:
        told = {
            "llama_cpp": options.commit,
            "transformers": transformers.__version__,
            "command": "convert_hf_to_gguf.py MODEL",
            "changed": "get_vocab_base_pre answers llama-bpe for unknown tokenizers",
        }
        kept = description(name)
        told |= {key: kept[key] for key in ("config", "tokenizer", "sources")}
        write(TINY / f"{name}.json", told | record(options.llama_cpp, name))
        print(name)


def record(llama_cpp: Path, name: str) -> dict[str, Any]:
    """The hash of the file of each output type, and keys and tensors of that of `auto`."""
    found: dict[str, Any] = {"files": {}}
    with tempfile.TemporaryDirectory() as folder:
        source = make_checkpoint(name, Path(folder))
        for outtype in ("auto", *(OTHER_TYPES if name in IN_OTHER_TYPES else ())):
            out = Path(folder) / outtype
            out.mkdir()
            convert(llama_cpp, source, out, ["--outtype", outtype])
            (path,) = out.iterdir()
            found["files"][outtype] = hashlib.sha256(path.read_bytes()).hexdigest()
            if outtype == "auto":
                found |= contents(path)
    return found


def contents(path: Path) -> dict[str, Any]:
    """A file's keys with type and value (of long arrays the length), and tensors with a hash."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    keys = []
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        value = field.contents()
        if isinstance(value, list) and len(value) > LONG:
            value = f"[{len(value)} items]"
        keys.append([key, "/".join(kind.name.lower() for kind in field.types), repr(value)[:150]])
    tensors = [
        f"{tensor.name} {tensor.tensor_type.name} {'x'.join(str(n) for n in tensor.shape)} "
        f"{hashlib.sha256(tensor.data.tobytes()).hexdigest()[:12]}"
        for tensor in reader.tensors
    ]
    return {"keys": keys, "tensors": tensors}


def write(path: Path, told: dict[str, Any]) -> None:
    """The description, with a line for every tensor and key so that changes are seen."""
    compact = partial(json.dumps, separators=(",", ":"), ensure_ascii=False)
    parts = []
    for key, value in told.items():
        text = compact(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(map(compact, value)) + "]"
        parts.append(f"{json.dumps(key)}:{text}")
    path.write_text("{" + ",\n".join(parts) + "}\n")


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main()

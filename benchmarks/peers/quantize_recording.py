"""Record what llama-quantize makes of a model: sizes, types, and a hash of every tensor."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from llama_tools import MODELS, THREADS, Output, Workplace, about, sha256_of, source_of, write_json

LEVELS = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS"),
    *("IQ3_XS", "Q3_K_S", "IQ3_S", "IQ3_M", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_0", "IQ4_NL"),
    *("Q4_K_S", "Q4_K_M", "Q4_1", "Q5_K_S", "Q5_0", "Q5_K_M", "Q5_1", "Q6_K", "Q8_0"),
)


def planned_types(output: Output) -> dict[str, str]:
    """The type of each tensor as llama-quantize --dry-run lists them."""
    line = r"^\[ *\d+/ *\d+\] (\S+) .* type = +(\w+), size = .*?(?:\((\w+)\))?$"
    found = re.findall(line, output.text, re.MULTILINE)
    return {name: wanted or kept for name, kept, wanted in found}


class Quantized:
    """The levels of one model with or without an imatrix; the hash of each tensor's bytes once."""

    def __init__(self, work: Workplace, model: str, imatrix: str) -> None:
        self._work, self._model = work, model
        self._imatrix = ("--imatrix", imatrix) if imatrix else ()
        self._suffix = "" if imatrix else "-plain"
        self.hashes: dict[str, dict[str, str]] = {}
        self.levels: dict[str, Any] = {}

    def add(self, level: str) -> None:
        """Make one level, or note why llama-quantize refuses it and which types it had planned."""
        source, target = source_of(self._model), f"{self._model}{self._suffix}-{level}.gguf"
        plan = planned_types(
            self._work.run("llama-quantize", "--dry-run", *self._imatrix, source, target, level)
        )
        output = self._work.run(
            "llama-quantize", *self._imatrix, source, target, level, THREADS, may_fail=True
        )
        path = self._work.folder / target
        if output.status:
            tensor, wanted = re.findall(r"- (?:offending tensor|target type): (\S+)", output.text)
            refused = {"tensor": tensor, "type": wanted}
            self.levels[level] = {"command": output.command, "refused": refused, "types": plan}
            path.unlink(missing_ok=True)
            return
        bits = re.search(r"quant size .*\(([\d.]+) BPW\)", output.text)
        self.levels[level] = {
            "command": output.command,
            "size": path.stat().st_size,
            "bpw": float(bits[1]) if bits else None,
            "sha256": sha256_of(path),
            "types": self._types(path),
        }
        if self.levels[level]["types"] != plan:
            raise RuntimeError(f"the dry run of {level} gave other types than the file has")

    def _types(self, path: Path) -> dict[str, str]:
        types = {}
        for tensor in GGUFReader(path).tensors:
            name, type_name = tensor.name, tensor.tensor_type.name
            # ggml's own spelling: q4_K and iq2_xxs, but F16 is f16
            spelled = re.sub("_k$", "_K", type_name.lower())
            types[name] = spelled
            digest = hashlib.sha256(tensor.data.tobytes()).hexdigest()
            if self.hashes.setdefault(name, {}).setdefault(spelled, digest) != digest:
                raise RuntimeError(f"{name} as {spelled} is not the same in every level")
        return types


def record_quantize(work: Workplace, out: Path) -> None:
    """Every level with the imatrix and without it: sizes, types and hashes."""
    for model in MODELS:
        imatrix = f"{model}.imatrix.gguf"
        guided, plain = Quantized(work, model, imatrix), Quantized(work, model, "")
        for level in LEVELS:
            guided.add(level)
            plain.add(level)
        document = work.header() | {
            "model": about(work, model),
            "imatrix": {"file": imatrix, "sha256": sha256_of(work.folder / imatrix)},
            "levels": guided.levels,
            "hashes": guided.hashes,
            "levels_without_imatrix": plain.levels,
            "hashes_without_imatrix": plain.hashes,
        }
        write_json(out / f"quantize-{model}.json", document)


def make_levels(work: Workplace, out: Path, levels: Sequence[str]) -> None:
    """Make levels with the imatrix; RuntimeError if a tensor's bytes are not those recorded."""
    for model in MODELS:
        recording = json.loads((out / f"quantize-{model}.json").read_text())
        made = Quantized(work, model, f"{model}.imatrix.gguf")
        for level in levels:
            made.add(level)
            if made.levels[level]["types"] != recording["levels"][level]["types"]:
                raise RuntimeError(f"{level} of {model} has other types than the recording")
        for name, digests in made.hashes.items():
            if not digests.items() <= recording["hashes"][name].items():
                raise RuntimeError(f"{name} of {model} has other bytes than the recording")

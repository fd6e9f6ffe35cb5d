"""Sensitivity files: what was measured on which model, and what each type costs; JSON.

A file holds all that the solver needs, so that solving for a size does not read the weights.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minitron_core.atomic_files import write_whole
from minitron_core.errors import Damaged, Denied, NotFound, Usage
from minitron_core.gguf import TYPE, TYPE_ID
from minitron_core.hashing import file_sha256
from minitron_quant.mixed_precision.activation_quantization import block_of

_FORMAT = 1
_LARGEST = 1e150
# what reading raises where a value is missing, of another JSON type, too large or nested too deeply
_WRONG = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)


@dataclass
class TensorSensitivity:
    """The measurements of one tensor.

    costs: by type (ggml id). probe_cost: that of the probe's type. rounding: the cost of inputs
    rounded to 8 bits, by size of block. divergences: from the full model with this tensor probed,
    the mean of each chunk measured so far. estimated: taken from other layers instead.
    """

    costs: dict[int, float]
    probe_cost: float
    rounding: dict[int, float] = field(default_factory=dict)
    divergences: list[float] = field(default_factory=list)
    estimated: bool = False

    @property
    def alpha(self) -> float:
        """Divergence per cost."""
        known = self.probe_cost > 0 and self.divergences
        return float(np.mean(self.divergences)) / self.probe_cost if known else 0.0

    @property
    def error(self) -> float:
        """The relative standard error of alpha, from the differences between chunks."""
        values = np.array(self.divergences)
        if len(values) < 2 or values.mean() <= 0:
            return float("nan")
        return float(values.std(ddof=1) / np.sqrt(len(values)) / values.mean())


@dataclass
class Sensitivity:
    """A measured model. model, text and imatrix have a name and a sha256, of the files."""

    model: dict[str, str]
    text: dict[str, str]
    imatrix: dict[str, str]
    ctx: int
    probe: str
    tensors: dict[str, TensorSensitivity]
    complete: bool = False
    device: str = ""

    @property
    def chunks(self) -> int:
        """The chunks that every tensor was measured on."""
        return min((len(tensor.divergences) for tensor in self.tensors.values()), default=0)

    def kld_cost(self, name: str, ggml_type: int) -> float:
        """The divergence that a tensor in a type adds; infinite for a type that ruins it."""
        tensor = self.tensors.get(name)
        if tensor is None or TYPE[ggml_type].block_elements == 1:
            return 0.0
        return tensor.alpha * tensor.costs.get(ggml_type, math.inf) + self.rounding(name, ggml_type)

    def rounding(self, name: str, ggml_type: int) -> float:
        """The part of kld_cost from the inputs, which kernels round to 8 bits."""
        tensor = self.tensors.get(name)
        if tensor is None or TYPE[ggml_type].block_elements == 1:
            return 0.0
        return tensor.alpha * tensor.rounding.get(block_of(ggml_type, self.device), 0.0)

    def used_imatrix(self, path: Path) -> bool:
        """Whether a file is the importance matrix of the measurement, as given or completed."""
        return file_sha256(path) in (self.imatrix["sha256"], self.imatrix.get("given"))

    def predict(self, types: Mapping[str, int]) -> float:
        """The divergence of a mix: the sum over its tensors."""
        return sum(self.kld_cost(name, ggml_type) for name, ggml_type in types.items())

    @property
    def error(self) -> float:
        """The relative standard error of a prediction, from the chunks; of noise, not of bias."""
        count = self.chunks
        if count < 2:
            return float("nan")
        sums = np.sum([t.divergences[:count] for t in self.tensors.values()], axis=0)
        return float(sums.std(ddof=1) / np.sqrt(count) / sums.mean())


def write_sensitivity(path: Path, sensitivity: Sensitivity) -> None:
    """Write a file whole; costs are by the names of types."""
    document = {
        "format": _FORMAT,
        "model": sensitivity.model,
        "text": sensitivity.text,
        "imatrix": sensitivity.imatrix,
        "ctx": sensitivity.ctx,
        "probe": sensitivity.probe,
        "device": sensitivity.device,
        "complete": sensitivity.complete,
        "tensors": {
            name: {
                "alpha": tensor.alpha if tensor.divergences else None,
                "divergences": tensor.divergences,
                "estimated": tensor.estimated,
                "probe_cost": tensor.probe_cost,
                "rounding": tensor.rounding,
                "costs": {TYPE[ggml_type].name: cost for ggml_type, cost in tensor.costs.items()},
            }
            for name, tensor in sensitivity.tensors.items()
        },
    }
    write_whole(path, json.dumps(document, indent=1) + "\n")


def read_sensitivity(path: Path) -> Sensitivity:
    """Read a file; NotFound, or Damaged for anything else."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(
            f"{path} does not exist", "make it: minitron sensitivity MODEL -f TEXT"
        ) from error
    except OSError as error:
        raise Denied(f"{path} cannot be read: {error}") from error
    try:
        document = json.loads(data)
        if document["format"] != _FORMAT:
            raise Usage(f"{path} has format {document['format']}, not {_FORMAT}")
        return _parsed(document)
    except _WRONG as error:
        raise Damaged(
            f"{path} is not a sensitivity file", "make it: minitron sensitivity MODEL -f TEXT"
        ) from error


def _parsed(document: dict[str, Any]) -> Sensitivity:
    tensors = {
        str(name): TensorSensitivity(
            {TYPE_ID[ggml_type]: _finite(cost) for ggml_type, cost in entry["costs"].items()},
            _finite(entry["probe_cost"]),
            {int(block): _finite(cost) for block, cost in entry["rounding"].items()},
            [_finite(value) for value in entry["divergences"]],
            bool(entry["estimated"]),
        )
        for name, entry in document["tensors"].items()
    }
    names = ("model", "text", "imatrix")
    hashed = {name: {k: str(v) for k, v in document[name].items()} for name in names}
    if not tensors or not all("sha256" in entry for entry in hashed.values()):
        raise ValueError("nothing measured")
    return Sensitivity(
        **hashed,
        ctx=int(document["ctx"]),
        probe=str(document["probe"]),
        tensors=tensors,
        complete=bool(document["complete"]),
        device=str(document["device"]),
    )


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) < _LARGEST:
        raise ValueError("not finite, or its square is not")
    return number

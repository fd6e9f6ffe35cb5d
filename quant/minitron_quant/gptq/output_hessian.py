"""Output Hessians: H_O = Σ gᵀg of the gradients g at the outputs of every matrix, as a GGUF file.

A matrix whose codes differ from its weights by E costs about tr(H_O E H Eᵀ), where H is that of its
inputs (YAQA, arXiv 2505.22988). Diagonal blocks of rows are kept. Tensors are named WEIGHT.ROW,
after the first row of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minitron_core.errors import Damaged
from minitron_core.gguf import F32, Gguf, GgufWriter, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_core.hashing import file_sha256
from minitron_quant.array_backend import Doubles, Floats
from minitron_quant.covariance.gram import block_edges
from minitron_quant.provenance import CalibrationOrigin

# rows of a block, as of columns in a covariance: blocks of 256 gain a little less
BLOCK = 1024
_TYPE, _VERSION = "output-hessian", 1
_PREFIX = "minitron.output_hessian."


@dataclass(frozen=True)
class HessianOrigin(CalibrationOrigin):
    """What Hessians were made from.

    tokens: that had a gradient. text_tokens: of the texts. context: tokens of a chunk.
    """

    tokens: int
    text_tokens: int
    context: int

    @property
    def keys(self) -> list[KeyValue]:
        """The metadata of a file."""
        numbers = {
            "version": _VERSION,
            "tokens": self.tokens,
            "text_tokens": self.text_tokens,
            "context": self.context,
            "block": BLOCK,
        }
        return [
            KeyValue.of("general.type", ValueType.STRING, _TYPE),
            KeyValue.of(_PREFIX + "model", ValueType.STRING, self.model),
            KeyValue.of(_PREFIX + "text_sha256", ValueType.ARRAY, [*self.texts], ValueType.STRING),
            *(KeyValue.of(_PREFIX + k, ValueType.UINT32, v) for k, v in numbers.items()),
        ]


@dataclass(frozen=True)
class OutputHessian:
    """An open file; blocks stay on disk until they are read."""

    file: Gguf

    @cached_property
    def made_from(self) -> str:
        """One hash over all of it."""
        return file_sha256(self.file.path)

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(info.name for info in self.file.tensors)

    def blocks(self, name: str, rows: int) -> list[tuple[int, Doubles]]:
        """The first row of each block of a weight, and the block; none where it has none.

        Damaged if it has other rows, or values that are not finite.
        """
        edges = block_edges(rows, BLOCK)
        if f"{name}.0" not in self._names:
            return []
        found = []
        for start, end in edges:
            square = self._square(f"{name}.{start}", end - start)
            found.append((start, square.astype(np.float64)))
        return found

    def _square(self, name: str, size: int) -> Floats:
        info = self.file.tensor(name) if name in self._names else None
        if info is None or info.shape != (size, size):
            raise Damaged(f"{self.file.path} has other rows than the model", "remove the file")
        square = self.file.data(info).view(np.float32).reshape(size, size)
        if not np.isfinite(square).all():
            raise Damaged(f"{self.file.path}: {name} is not finite", "remove the file")
        return square


def open_output_hessian(path: Path, origin: HessianOrigin) -> OutputHessian | None:
    """The Hessians in a file; None unless it exists and was made from the same."""
    if not path.exists():
        return None
    file = open_gguf(path)
    made_from = [entry.encoded() for entry in file.metadata.values()]
    return OutputHessian(file) if made_from == [key.encoded() for key in origin.keys] else None


def write_output_hessian(
    path: Path, origin: HessianOrigin, sums: Mapping[str, Sequence[Floats]]
) -> OutputHessian:
    """Write the blocks of every weight, as `block_edges` of its rows cuts them."""
    tensors: dict[str, Floats] = {}
    for name, blocks in sums.items():
        start = 0
        for block in blocks:
            tensors[f"{name}.{start}"] = block
            start += len(block)
    specs = [TensorSpec(name, (len(block), len(block)), F32) for name, block in tensors.items()]
    with GgufWriter(path, origin.keys, specs) as writer:
        for block in tensors.values():
            writer.write(np.ascontiguousarray(block, np.float32))
    return OutputHessian(open_gguf(path))

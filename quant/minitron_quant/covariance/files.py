"""Covariance files: GGUF with the sums of every input, for each of two parts of the text.

Codes fitted to one part can be measured on the other. Tensors are named INPUT.PART.COLUMN, after
the weight that names the input and the first column of a block.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import Damaged, NotFound
from minitron_core.gguf import F32, Gguf, KeyValue, TensorSpec, ValueType, open_gguf
from minitron_quant.array_backend import Doubles, Floats
from minitron_quant.covariance.gram import block_edges
from minitron_quant.covariance.input_hook import ModelInputs
from minitron_quant.provenance import CalibrationOrigin

PARTS = 2
_TYPE, _VERSION = "covariance", 2
_PREFIX = "minitron.covariance."


@dataclass(frozen=True)
class CovarianceOrigin(CalibrationOrigin):
    """What a covariance was made from.

    names: of the texts. tokens: seen in each part of the text. context: tokens of a chunk. sample:
    some chunks of the last part, concatenated, to measure codes that were fitted to the others.
    """

    names: tuple[str, ...]
    tokens: tuple[int, ...]
    context: int
    sample: tuple[int, ...] = ()

    def keys(self, inputs: ModelInputs, block: int) -> list[KeyValue]:
        """The metadata of a file. block: the largest width of a block of columns."""
        strings = {
            "text_sha256": self.texts,
            "texts": self.names,
            "weights": inputs.taken_by.keys(),
            "inputs": inputs.taken_by.values(),
        }
        numbers = {"version": _VERSION, "context": self.context, "block": block}
        return [
            KeyValue.of("general.type", ValueType.STRING, _TYPE),
            KeyValue.of(_PREFIX + "model", ValueType.STRING, self.model),
            *(KeyValue.of(_PREFIX + k, ValueType.UINT32, v) for k, v in numbers.items()),
            *(
                KeyValue.of(_PREFIX + k, ValueType.ARRAY, [*v], ValueType.STRING)
                for k, v in strings.items()
            ),
            KeyValue.of(_PREFIX + "tokens", ValueType.ARRAY, [*self.tokens], ValueType.UINT32),
            KeyValue.of(_PREFIX + "sample", ValueType.ARRAY, [*self.sample], ValueType.INT32),
        ]


def specs_of(name: str, edges: list[tuple[int, int]], part: int) -> list[TensorSpec]:
    """The tensors of one input in one part of the text."""
    return [TensorSpec(f"{name}.{part}.{a}", (b - a, b - a), F32) for a, b in edges]


@dataclass(frozen=True)
class Covariance:
    """An open file; sums stay on disk until they are read."""

    file: Gguf

    @cached_property
    def origin(self) -> CovarianceOrigin:
        """What it was made from."""
        get = self.file.get
        model = str(get(_PREFIX + "model"))
        texts, names = (tuple(map(str, get(_PREFIX + key))) for key in ("text_sha256", "texts"))
        tokens, sample = (tuple(map(int, get(_PREFIX + key))) for key in ("tokens", "sample"))
        return CovarianceOrigin(model, texts, names, tokens, int(get(_PREFIX + "context")), sample)

    @cached_property
    def taken_by(self) -> dict[str, str]:
        """The input of each weight."""
        weights, inputs = (self.file.get(_PREFIX + key) for key in ("weights", "inputs"))
        return dict(zip(map(str, weights), map(str, inputs), strict=True))

    @property
    def block(self) -> int:
        """The largest width of a block of columns."""
        return int(self.file.get(_PREFIX + "block"))

    def edges(self, name: str, columns: int) -> list[tuple[int, int]]:
        """Where the blocks of an input begin and end; Damaged if it has other columns."""
        edges = block_edges(columns, self.block)
        sizes = {info.name: info.shape for info in self.file.tensors}
        for part in range(PARTS):
            if any(sizes.get(spec.name) != spec.shape for spec in specs_of(name, edges, part)):
                raise Damaged(
                    f"{self.file.path} has no covariance of {columns} columns for {name}",
                    "it was made for another model",
                )
        return edges

    def diagonal(self, name: str, start: int) -> Floats:
        """The mean squares of the columns of one block, over the whole text; Damaged as `mean`."""
        total = np.zeros(0, np.float32)
        for part in range(PARTS):
            info = self.file.tensor(f"{name}.{part}.{start}")
            square = self.file.data(info).view(np.float32).reshape(info.shape)
            total = square.diagonal() + (total if part else 0)
        self._check_finite(name, total)
        return total / np.float32(max(1, sum(self.origin.tokens)))

    def _check_finite(self, name: str, sums: NDArray[Any]) -> None:
        if not np.isfinite(sums).all():
            raise Damaged(
                f"{self.file.path}: the covariance of {name} is not finite", "collect it again"
            )

    def mean(self, name: str, start: int, parts: tuple[int, ...]) -> Doubles:
        """Σ xᵀx / tokens of one block over some parts of the text, [columns, columns].

        Damaged if it is not finite.
        """
        tensors = [self.file.tensor(f"{name}.{part}.{start}") for part in parts]
        width = tensors[0].shape[0]
        total = np.zeros((width, width))
        for info in tensors:
            total += self.file.data(info).view(np.float32).reshape(width, width)
        self._check_finite(name, total)
        total /= max(1, sum(self.origin.tokens[part] for part in parts))
        return total


def open_covariance(path: Path) -> Covariance:
    """Open a file and check that it is a covariance; NotFound, Damaged."""
    if not path.exists():
        raise NotFound(f"{path} does not exist", "--gptq --text TEXT collects a covariance")
    file = open_gguf(path)
    keys = ("block", "context", "inputs", "model", "sample", "text_sha256", "texts", "tokens")
    if file.get("general.type") == _TYPE and file.get(_PREFIX + "version") != _VERSION:
        raise Damaged(f"{path} was made by another version of minitron", "collect it again")
    if file.get("general.type") != _TYPE or any(_PREFIX + k not in file.metadata for k in keys):
        raise Damaged(f"{path} is not a covariance file", "minitron quantize --gptq makes one")
    covariance = Covariance(file)
    if len(covariance.origin.tokens) != PARTS or covariance.block < 1:
        raise Damaged(f"{path} is not a covariance file", "minitron quantize --gptq makes one")
    return covariance

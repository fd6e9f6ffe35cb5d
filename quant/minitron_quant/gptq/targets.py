"""The values that the codes of a stage's weights approach, made when they are encoded."""

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_core.gguf import Gguf, TensorInfo
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.blocks import decode_blocks
from minitron_quant.gptq.cross_validation import sampled_rows
from minitron_quant.gptq.drift import DriftSettings, DriftSums, choose_ridge, solve

# rows of a weight that ridges are tried on
_SAMPLE_ROWS = 128
_FLOAT = 4  # bytes


@dataclass(frozen=True)
class Weight:
    """A matrix of the source and what moves it to its target.

    shift: T = W + W shift, [columns, columns], or None. moved: T = W + moved, [rows, columns], or
    None. As data of an encode.EncodeTask it is the target's float32 bytes.
    """

    shard: Gguf
    info: TensorInfo
    shift: Floats | None = None
    moved: Floats | None = None

    def __getitem__(self, part: slice) -> Bytes:
        """Some whole rows of the target."""
        size = _FLOAT * self.info.shape[0]
        rows = slice(part.start // size, part.stop // size)
        data = self.shard.data(self.info)[rows.start * self._size : rows.stop * self._size]
        shape = (rows.stop - rows.start, self.info.shape[0])
        values = self._target(decode_blocks(self.info.type, data, shape), rows)
        return values.reshape(-1).view(np.uint8)

    @property
    def values(self) -> Floats:
        """The whole target, [rows, columns]."""
        return self[0 : _FLOAT * self.info.n_elements].view(np.float32).reshape(self.info.rows, -1)

    @property
    def _size(self) -> int:
        return self.info.row_size

    def sample(self, count: int | None = None) -> tuple[Floats, NDArray[np.intp]]:
        """Some rows of the target, spread evenly, and their numbers."""
        rows = sampled_rows(self.info.rows, count)
        data = self.shard.data(self.info).reshape(self.info.rows, self._size)[rows]
        values = decode_blocks(self.info.type, data, (len(rows), self.info.shape[0]))
        return self._target(values, rows), rows

    def _target(self, values: Floats, rows: slice | NDArray[np.intp]) -> Floats:
        if self.shift is not None:
            return values + values @ self.shift
        return values + self.moved[rows] if self.moved is not None else values


def ridge_of(
    weights: list[Weight],
    sums: DriftSums,
    settings: DriftSettings,
    pool: Executor,
    start: float | None = None,
) -> float:
    """The ridge for weights that share an input, tried on some rows of the first one.

    start: where the search starts, such as the ridge of the layer before.
    """
    return choose_ridge(sums, *weights[0].sample(_SAMPLE_ROWS), settings, pool, start)


def targets_of(
    weights: list[Weight], sums: DriftSums, ridge: float, pool: Executor
) -> list[Weight]:
    """The weights that share an input, with what moves them; threads of the pool solve for it."""
    height, (columns, *_) = sum(each.info.rows for each in weights), weights[0].info.shape
    if not sums.is_residual and (len(weights) > 1 or height > columns):
        # one shift for all rows, where that is less work
        shift = sums.shift(ridge, pool)
        return [Weight(each.shard, each.info, shift=shift) for each in weights]
    (weight,) = weights
    wanted = sums.wanted(weight.values, slice(None), pool)
    moved = solve(sums.metric(), wanted, ridge, pool)
    return [Weight(weight.shard, weight.info, moved=moved)]

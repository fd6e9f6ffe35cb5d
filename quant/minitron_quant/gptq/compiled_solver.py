"""The GPTQ loop in the compiled library: the same search as column_solver.py, several times faster.

Large products stay BLAS's. Columns of a strip, which wait for each other, are the library's. The
error of what it chose comes with it: ‖e R‖² is the sum of what its columns lose, and R Rᵀ is H plus
the damping.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_quant.array_backend import Bytes, Doubles, Floats, Ints
from minitron_quant.gptq.cholesky import BlockFactor
from minitron_quant.gptq.codebook_coder import CodebookCoder
from minitron_quant.gptq.codebook_types import SHIFT
from minitron_quant.gptq.coordinate_descent import descend, error_in_block
from minitron_quant.gptq.scalar_coder import ScalarCoder, ScaleField
from minitron_quant.kernels import gptq

# columns whose targets are corrected by one large product
_STRIP = 128
# of float32 sums: no error is reported as less than it is
_ROUNDING = 1e-5


def solve_compiled(
    coder: ScalarCoder | CodebookCoder, values: Floats, blocks: list[BlockFactor], sweeps: int = 0
) -> tuple[Bytes, Doubles]:
    """Choose all codes of rows [rows, columns]; returns the blocks, and e H eᵀ of every row.

    sweeps: of coordinate descent after GPTQ.
    """
    chosen: _ScalarSearch | _CodebookSearch = (
        _ScalarSearch(coder, *values.shape)
        if isinstance(coder, ScalarCoder)
        else _CodebookSearch(coder, *values.shape)
    )
    errors = np.zeros(len(values))
    for block in blocks:
        left, loss = _solve_block(chosen, values, block)
        if sweeps:
            weights = _padded(values[:, block.start : block.end].T, chosen.stride)
            descend(chosen, weights, left, block, sweeps)
            loss = error_in_block(left[:, : chosen.rows], block)
        errors += loss
    return chosen.packed(), errors


def _solve_block(
    search: "_ScalarSearch | _CodebookSearch", values: Floats, block: BlockFactor
) -> tuple[Floats, Doubles]:
    """GPTQ over a block: weights − values, [columns, rows], and e H eᵀ."""
    group, stride = search.group, search.stride
    weights = _padded(values[:, block.start : block.end].T[block.order], stride)
    errors, loss = np.zeros_like(weights), np.zeros(stride)
    groups = ((block.start + block.order[::group]) // group).astype(np.int32)
    size = len(weights)
    corrected = np.empty((_STRIP, stride), np.float32)
    for start in range(0, size, _STRIP):
        end = min(start + _STRIP, size)
        targets = corrected[: end - start]
        np.matmul(block.unit[:start, start:end].T, errors[:start], out=targets)
        targets += weights[start:end]
        square = block.upper[start:, start:], block.unit[start:, start:]
        parts = groups[start // group :], weights[start:], targets, errors[start:]
        search.choose(square, size, end - start, *parts, loss)
    squares = np.einsum("ij,ij->j", errors, errors, dtype=np.float64)
    found: Doubles = (loss * (1 + _ROUNDING) - block.added * squares)[: search.rows]
    left = np.empty_like(errors)
    left[block.order] = errors
    return left, found


class _Search:
    """A coder's arrays as the library takes them, [columns or groups, rows]."""

    structure: gptq.Scalar | gptq.Codebook
    # what is chosen, [groups, …, rows] each
    chosen: list[NDArray[Any]]

    def __init__(self, rows: int, group: int) -> None:
        self.rows, self.group = rows, group
        self._lanes = -(-rows // gptq.LANES) * gptq.LANES
        # not a power of two: columns would share few places of the first cache
        self.stride = self._lanes + gptq.LANES

    def choose(
        self,
        factor: tuple[Floats, Floats],
        size: int,
        columns: int,
        groups: Ints,
        weights: Floats,
        targets: Floats,
        errors: Floats,
        loss: Doubles,
    ) -> None:
        """Choose the codes of a strip of columns; errors are filled, losses added to.

        factor: R and unit R from the strip's first column on, in rows of `size`.
        """
        upper, unit = factor
        strip = gptq.Strip(
            rows=self._lanes, stride=self.stride, columns=columns, size=size,
            weights=weights.ctypes.data, targets=targets.ctypes.data, upper=upper.ctypes.data,
            unit=unit.ctypes.data, groups=groups.ctypes.data, errors=errors.ctypes.data,
            loss=loss.ctypes.data,
        )  # fmt: skip
        gptq.choose(strip, self.structure)

    def choose_span(self, first: int, targets: Floats, upper: Floats) -> Floats:
        """As coordinate_descent.SpanSearch has it."""
        columns = len(targets)
        groups = np.arange(first, first + columns // self.group, dtype=np.int32)
        factor = upper, upper / upper.diagonal()
        errors, loss = np.zeros_like(targets), np.zeros(self.stride)
        self.choose(factor, columns, columns, groups, targets, targets, errors, loss)
        return errors

    def kept(self, groups: slice) -> list[NDArray[Any]]:
        """As coordinate_descent.SpanSearch has it."""
        return [each[groups].copy() for each in self.chosen]

    def restore(self, groups: slice, kept: list[NDArray[Any]], rows: NDArray[np.bool_]) -> None:
        """As coordinate_descent.SpanSearch has it."""
        for each, old in zip(self.chosen, kept, strict=True):
            np.copyto(each[groups], old, where=rows)


class _ScalarSearch(_Search):
    def __init__(self, coder: ScalarCoder, rows: int, columns: int) -> None:
        super().__init__(rows, coder.group)
        self._coder = coder
        self._codes = np.zeros((columns, self.stride), np.uint8)
        self._scales, self._mins = self._scale(coder.scales), self._scale(coder.mins)
        layout, low = coder.layout, int(coder.levels.min())
        self._levels = np.ascontiguousarray(coder.levels)
        # the codes of q8_0 are the bytes of its levels
        of_zero = 0 if len(self._levels) == 256 else -low
        self.structure = gptq.Scalar(
            group=coder.group, with_min=coder.mins is not None,
            low=low, high=int(coder.levels.max()), code_of_zero=of_zero,
            levels=self._levels.ctypes.data if layout.levels is None else None,
            scale=self._scales[0], min=self._mins[0], codes=self._codes.ctypes.data,
        )  # fmt: skip
        codes = self._codes.reshape(-1, coder.group, self.stride)
        self.chosen = [codes, *self._scales[1][1:], *self._mins[1][1:]]

    def _scale(self, field: ScaleField | None) -> tuple[gptq.Scale, list[Floats]]:
        if field is None:
            return gptq.Scale(), []
        half, value = (_padded(a.T, self.stride) for a in (field.half_of, field.values))
        structure = gptq.Scale(
            whole=field.high > 0, low=field.low, high=field.high, sign=field.sign,
            half=half.ctypes.data, value=value.ctypes.data,
        )  # fmt: skip
        return structure, [half, value]

    def packed(self) -> Bytes:
        """The blocks with what was chosen."""
        for field, (_, arrays) in (
            (self._coder.scales, self._scales),
            (self._coder.mins, self._mins),
        ):
            if field is not None:
                field.values = np.ascontiguousarray(arrays[1][:, : self.rows].T)
        return self._coder.packed(self._codes[:, : self.rows].T.astype(np.int32, order="C"))


class _CodebookSearch(_Search):
    def __init__(self, coder: CodebookCoder, rows: int, columns: int) -> None:
        super().__init__(rows, coder.group)
        self._coder, layout = coder, coder.layout
        self._table = np.ascontiguousarray(coder.table.T)
        self._d = _padded(coder.d.T, self.stride)
        self._scale = _padded(coder.scales.T, self.stride)
        self._index = np.zeros((columns // layout.vector, self.stride), np.int32)
        self._bits = np.zeros((columns // 8, self.stride), np.int32)
        self.structure = gptq.Codebook(
            group=coder.group, dims=layout.vector, words=len(coder.table),
            most_scale=(1 << layout.scale_bits) - 1, even=layout.even, shifted=layout.shifted,
            unit=layout.unit, shift=SHIFT, table=self._table.ctypes.data, d=self._d.ctypes.data,
            scale=self._scale.ctypes.data, index=self._index.ctypes.data,
            bits=self._bits.ctypes.data,
        )  # fmt: skip
        self._scratch = gptq.with_scratch(self.structure)
        groups = columns // coder.group
        several = (each.reshape(groups, -1, self.stride) for each in (self._index, self._bits))
        self.chosen = [self._scale, *several]

    def packed(self) -> Bytes:
        """The blocks with what was chosen."""
        coder = self._coder
        found = (self._scale, self._index, self._bits)
        scales, index, bits = (np.ascontiguousarray(a[:, : self.rows].T) for a in found)
        coder.scales = scales
        coder.index, coder.bits = index.reshape(coder.index.shape), bits.reshape(coder.bits.shape)
        return coder.pack()


def _padded(values: NDArray[Any], stride: int) -> NDArray[Any]:
    """A copy with zeros up to the stride: [columns, rows]."""
    padded = np.zeros((len(values), stride), values.dtype)
    padded[:, : values.shape[1]] = values
    return padded

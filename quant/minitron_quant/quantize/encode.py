"""Rows to blocks: each run of rows is decoded once and encoded to all its types, in threads.

ggml decodes, minitron_quant.kernels encodes; both release the GIL, so a pool of Python threads
keeps all cores busy.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from minitron_core import stop
from minitron_core.errors import Damaged, MinitronError
from minitron_core.gguf import TYPE, TensorInfo, row_bytes
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.blocks import are_valid, decode_blocks, encode_blocks

# a slab's size bounds the memory: its blocks of all types are held until they are written
SLAB_ELEMENTS = 1 << 23
_SLABS_AHEAD = 3
# a run is at least what llama-quantize gives a thread, and small enough to share a tensor
_MIN_RUN, _MAX_RUN = 32 * 512, 1 << 18
# weights between two looks at a request to stop: the slowest of ggml's encoders take 0.2 s for them
_PIECE = 1 << 16


class TensorBytes(Protocol):
    """A tensor's bytes, read or made when a part is needed; an array is one."""

    def __getitem__(self, part: slice, /) -> Bytes: ...


class ErrorMetric(Protocol):
    """Measures the error of an encoding."""

    def __call__(self, values: Floats, decoded: Floats, matrix: int) -> tuple[float, float]:
        """(Error, the same sum over the values) of rows [rows, columns] of one matrix."""


class RefineRows(Protocol):
    """Improves the codes that ggml's encoder chose for some rows of a tensor."""

    def __call__(self, ggml_type: int, values: Floats, blocks: Bytes) -> Bytes:
        """values: [rows, columns] of one matrix; returns blocks of the same size."""


@dataclass(frozen=True)
class ColumnErrors:
    """Σ w (decoded − weight)² and Σ w weight², w being the importance of the column, or 1.

    weights: [matrices, columns] float32, or None.
    """

    weights: Floats | None

    def __call__(self, values: Floats, decoded: Floats, matrix: int) -> tuple[float, float]:
        """See ErrorMetric."""
        difference = decoded - values
        squared = np.einsum("ij,ij->j", difference, difference, dtype=np.float64)
        weight = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        if self.weights is not None:
            importance = self.weights[matrix % len(self.weights)]
            squared, weight = squared * importance, weight * importance
        return float(squared.sum()), float(weight.sum())


@dataclass(frozen=True)
class EncodeTask:
    """A tensor to encode: its bytes, the target types, the importance of its columns.

    weights: [matrices, columns] float32, or None. metric: measures each encoding. refine: improves
    ggml's codes, `refined_rows` at a time whatever the number of threads, so that the number does
    not change the bytes. first_row: where to begin.
    """

    info: TensorInfo
    data: TensorBytes
    types: tuple[int, ...]
    weights: Floats | None
    metric: ErrorMetric | None = None
    refine: RefineRows | None = None
    refined_rows: int = 512
    first_row: int = 0

    @property
    def elements(self) -> int:
        """How many weights are encoded."""
        return self.info.n_elements - self.first_row * self.info.shape[0]


# by type: what the metric gave, summed over the rows
Errors = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Slab:
    """Some rows of a tensor in every target type, from `first` on; `last` closes the tensor."""

    task: EncodeTask
    first: int
    elements: int
    last: bool
    blocks: dict[int, Bytes]
    errors: Errors


class _Run(NamedTuple):
    """Rows that one thread encodes: their bytes, the first row in the slab, their matrix."""

    source: Bytes
    row: int
    rows: int
    matrix: int


def encode(tasks: Iterable[EncodeTask], threads: int) -> Iterator[Slab]:
    """Encode tensors slab by slab, in order; the next slabs are started ahead.

    Raises Damaged for values that are not finite, Unsupported for a type ggml cannot decode,
    KeyboardInterrupt between two types or rows after a request to stop.
    """
    pending: deque[tuple[Slab, list[Future[Errors]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        try:
            for task in tasks:
                for slab, runs in _slabs(task, threads):
                    pending.append((slab, [pool.submit(_encode_run, slab, run) for run in runs]))
                    if len(pending) > _SLABS_AHEAD:
                        yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(slab: Slab, runs: list[Future[Errors]]) -> Slab:
    for run in runs:
        add_errors(slab.errors, run.result())
    return slab


def add_errors(total: Errors, more: Errors) -> None:
    """Add `more` to the sums of errors by type in `total`."""
    for ggml_type, (error, weight) in more.items():
        before = total.get(ggml_type, (0.0, 0.0))
        total[ggml_type] = (before[0] + error, before[1] + weight)


def _slabs(task: EncodeTask, threads: int) -> Iterator[tuple[Slab, list[_Run]]]:
    info = task.info
    columns, rows = max(info.shape[0], 1), info.rows
    step = max(1, SLAB_ELEMENTS // columns)
    for first in range(task.first_row, rows, step):
        count = min(step, rows - first)
        source = task.data[first * info.row_size : (first + count) * info.row_size]
        blocks = {
            ggml_type: source
            if ggml_type == info.type
            else np.empty(count * row_bytes(ggml_type, columns), dtype=np.uint8)
            for ggml_type in task.types
        }
        slab = Slab(task, first, count * columns, first + count == rows, blocks, {})
        elements = min(max(slab.elements // (threads * 4), _MIN_RUN), _MAX_RUN)
        length = task.refined_rows if task.refine is not None else max(1, elements // columns)
        yield slab, list(_runs(info, source, first, count, length))


def _runs(info: TensorInfo, source: Bytes, first: int, rows: int, length: int) -> Iterator[_Run]:
    # a run stays within one matrix, because each expert has an importance of its own
    per_matrix = info.shape[1] if len(info.shape) > 1 else 1
    row = 0
    while row < rows:
        matrix, within = divmod(first + row, per_matrix)
        count = min(length, rows - row, per_matrix - within)
        part = source[row * info.row_size : (row + count) * info.row_size]
        yield _Run(part, row, count, matrix)
        row += count


def _encode_rows(ggml_type: int, values: Floats, importance: Floats | None, blocks: Bytes) -> None:
    step, size = max(1, _PIECE // max(values.shape[1], 1)), len(blocks) // max(len(values), 1)
    for row in range(0, len(values), step):
        stop.check()
        part = slice(row, row + step)
        out = blocks[row * size : (row + step) * size]
        encode_blocks(ggml_type, values[part], importance, out)


def encode_values(
    info: TensorInfo,
    ggml_type: int,
    values: Floats,
    importance: Floats | None,
    refine: RefineRows | None,
    blocks: Bytes,
) -> None:
    """Encode rows [rows, columns] of a tensor into `blocks`, as ggml or as `refine` does.

    Raises MinitronError for blocks that are not valid, KeyboardInterrupt after a request to stop.
    """
    _encode_rows(ggml_type, values, importance, blocks)
    if refine is not None:
        blocks[:] = refine(ggml_type, values, blocks)
    if not are_valid(ggml_type, blocks):
        name = TYPE[ggml_type].name
        raise MinitronError(f"{info.name}: encoding to {name} gave invalid blocks")


def _encode_run(slab: Slab, run: _Run) -> Errors:
    task, info = slab.task, slab.task.info
    if not are_valid(info.type, run.source):
        raise Damaged(
            f"{info.name} holds values that are not finite (NaN or infinite)",
            "the checkpoint is damaged, or its weights do not fit its type",
        )
    types = [ggml_type for ggml_type in task.types if ggml_type != info.type]
    if not types:
        return {}
    shape = run.rows, info.shape[0]
    values = decode_blocks(info.type, run.source, shape)
    importance = None if task.weights is None else task.weights[run.matrix % len(task.weights)]
    errors: Errors = {}
    for ggml_type in types:
        size = row_bytes(ggml_type, info.shape[0])
        blocks = slab.blocks[ggml_type][run.row * size : (run.row + run.rows) * size]
        encode_values(info, ggml_type, values, importance, task.refine, blocks)
        if task.metric is not None:
            decoded = decode_blocks(ggml_type, blocks, shape)
            errors[ggml_type] = task.metric(values, decoded, run.matrix)
    return errors

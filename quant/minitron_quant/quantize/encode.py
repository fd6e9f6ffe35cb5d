"""Rows to blocks: every run of rows is decoded once and encoded to all its types, in threads.

ggml does both; ctypes releases the GIL, so a pool of Python threads keeps all cores busy.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import Damaged, MinitronError, Unsupported
from minitron_core.gguf import F32, TYPE, TensorInfo, row_bytes
from minitron_engine.llama.library import decode, ggml

Bytes = NDArray[np.uint8]
Values = NDArray[np.float32]

# a slab's size bounds the memory: what it becomes, in all types, is held until it is written
SLAB_ELEMENTS = 1 << 23
_SLABS_AHEAD = 3
# a task is at least what llama-quantize gives a thread, and small enough to share a tensor
_MIN_TASK, _MAX_TASK = 32 * 512, 1 << 18


class Source(Protocol):
    """A tensor's bytes, read or made when a part is asked for; an array is one."""

    def __getitem__(self, part: slice, /) -> Bytes: ...


class Metric(Protocol):
    """How much an encoding hurts."""

    def __call__(self, values: Values, decoded: Values, matrix: int) -> tuple[float, float]:
        """(Error, the same sum over the values) of rows of one matrix; both [rows, columns]."""


class Refine(Protocol):
    """Choose the codes of rows anew that ggml has encoded."""

    def __call__(self, kind: int, values: Values, blocks: Bytes) -> Bytes:
        """values: [rows, columns] of one matrix; returns blocks of the same size."""


@dataclass(frozen=True)
class ColumnErrors:
    """Σ w (decoded − weight)² and Σ w weight², w being the importance of the column, or 1.

    weights: [matrices, columns] float32, or None.
    """

    weights: Values | None

    def __call__(self, values: Values, decoded: Values, matrix: int) -> tuple[float, float]:
        """See Metric."""
        difference = decoded - values
        squared = np.einsum("ij,ij->j", difference, difference, dtype=np.float64)
        weight = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        if self.weights is not None:
            importance = self.weights[matrix % len(self.weights)]
            squared, weight = squared * importance, weight * importance
        return float(squared.sum()), float(weight.sum())


@dataclass(frozen=True)
class Job:
    """A tensor to encode: its bytes, the types wanted, the importance of its columns.

    weights: [matrices, columns] float32, or None. metric: what to measure on what was encoded.
    refine: what improves on ggml's encoding, if anything, of so many rows at a time whatever the
    threads, whose number so changes no byte.
    """

    info: TensorInfo
    data: Source
    types: tuple[int, ...]
    weights: Values | None
    metric: Metric | None = None
    refine: Refine | None = None
    refined_rows: int = 512


# by type: what the metric gave, summed over the rows
Errors = dict[int, tuple[float, float]]


@dataclass(frozen=True)
class Slab:
    """Some rows of a tensor in every wanted type; `last` closes the tensor."""

    job: Job
    elements: int
    last: bool
    blocks: dict[int, Bytes]
    errors: Errors


def encode(jobs: Iterable[Job], threads: int) -> Iterator[Slab]:
    """Encode tensors slab by slab, in order, with work started ahead on the slabs that follow.

    Raises Damaged for values that are no numbers, Unsupported for a type ggml cannot decode.
    """
    pending: deque[tuple[Slab, list[Future[Errors]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        try:
            for job in jobs:
                for slab, runs in _slabs(job, threads):
                    pending.append((slab, [pool.submit(_encode_run, slab, *run) for run in runs]))
                    if len(pending) > _SLABS_AHEAD:
                        yield _finished(*pending.popleft())
            while pending:
                yield _finished(*pending.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(slab: Slab, tasks: list[Future[Errors]]) -> Slab:
    for task in tasks:
        add_errors(slab.errors, task.result())
    return slab


def add_errors(total: Errors, more: Errors) -> None:
    """Add up the sums of errors by type."""
    for kind, (error, weight) in more.items():
        before = total.get(kind, (0.0, 0.0))
        total[kind] = (before[0] + error, before[1] + weight)


Run = tuple[Bytes, int, int, int]  # source bytes, first row in the slab, rows, matrix


def _slabs(job: Job, threads: int) -> Iterator[tuple[Slab, list[Run]]]:
    info = job.info
    columns, rows = max(info.shape[0], 1), info.rows
    step = max(1, SLAB_ELEMENTS // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        source = job.data[first * info.row_size : (first + count) * info.row_size]
        blocks = {
            kind: source
            if kind == info.type
            else np.empty(count * row_bytes(kind, columns), dtype=np.uint8)
            for kind in job.types
        }
        slab = Slab(job, count * columns, first + count == rows, blocks, {})
        task = min(max(slab.elements // (threads * 4), _MIN_TASK), _MAX_TASK)
        run = job.refined_rows if job.refine is not None else max(1, task // columns)
        yield slab, list(_runs(info, source, first, count, run))


def _runs(info: TensorInfo, source: Bytes, first: int, rows: int, step: int) -> Iterator[Run]:
    # a run stays within one matrix, because each expert has an importance of its own
    per_matrix = info.shape[1] if len(info.shape) > 1 else 1
    row = 0
    while row < rows:
        matrix, within = divmod(first + row, per_matrix)
        count = min(step, rows - row, per_matrix - within)
        yield source[row * info.row_size : (row + count) * info.row_size], row, count, matrix
        row += count


def _encode_run(slab: Slab, source: Bytes, row: int, rows: int, matrix: int) -> Errors:
    job, info = slab.job, slab.job.info
    if not ggml().ggml_validate_row_data(info.type, source.ctypes.data, source.nbytes):
        raise Damaged(
            f"{info.name} holds values that are no numbers (NaN or infinite)",
            "the checkpoint is damaged, or its weights do not fit its type",
        )
    wanted = [kind for kind in job.types if kind != info.type]
    if not wanted:
        return {}
    columns = info.shape[0]
    values = _decoded(info.name, info.type, source, rows * columns)
    importance = None if job.weights is None else job.weights[matrix % len(job.weights)]
    errors: Errors = {}
    for kind in wanted:
        size = row_bytes(kind, columns)
        target = slab.blocks[kind][row * size : (row + rows) * size]
        pointer = None if importance is None else importance.ctypes.data
        ggml().ggml_quantize_chunk(
            kind, values.ctypes.data, target.ctypes.data, 0, rows, columns, pointer
        )
        if job.refine is not None:
            target[:] = job.refine(kind, values.reshape(rows, columns), target)
        if not ggml().ggml_validate_row_data(kind, target.ctypes.data, target.nbytes):
            raise MinitronError(f"{info.name}: encoding to {TYPE[kind].name} gave invalid blocks")
        if job.metric is not None:
            decoded = _decoded(info.name, kind, target, rows * columns)
            shape = rows, columns
            errors[kind] = job.metric(values.reshape(shape), decoded.reshape(shape), matrix)
    return errors


def _decoded(name: str, kind: int, source: Bytes, elements: int) -> Values:
    if kind == F32:
        return source.view(np.float32)
    values = np.empty(elements, dtype=np.float32)
    if not decode(kind, source.ctypes.data, values.ctypes.data, elements):
        raise Unsupported(f"{name}: {TYPE[kind].name} cannot be decoded")
    return values

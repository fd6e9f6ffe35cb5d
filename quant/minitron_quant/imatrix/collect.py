"""Collect an importance matrix: watch every matrix product while a text runs through the model.

Which products count, and how: IMatrixCollector of tools/imatrix (llama.cpp 0c1e57098), to the
bit: squares and sums in float32, added row after row. What is saved is work: products with the
same input share one reduction, and a decode ends where nothing more is to be seen.
"""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from minitron_engine import interrupts
from minitron_engine.binding import api
from minitron_engine.context import open_context
from minitron_engine.errors import MinitronError, Usage
from minitron_engine.library import OP_MUL_MAT, OP_MUL_MAT_ID, Tensor, ggml
from minitron_engine.model import Model, Tokens
from minitron_engine.progress import Event, Progress, ignore
from minitron_quant.chunks import ChunkSettings, chunk_text, decode_chunks, read_text
from minitron_quant.imatrix.matrix import Entry, ImportanceMatrix

_F32 = 0
_MIN_TOKENS = 16  # llama-imatrix ignores smaller products


@dataclass(frozen=True)
class CollectSettings:
    """What to run; texts are used one after the other, each chunked for itself."""

    texts: tuple[Path, ...]
    chunks: ChunkSettings = ChunkSettings()
    process_output: bool = False


def collect(
    model: Model, settings: CollectSettings, progress: Progress = ignore
) -> ImportanceMatrix:
    """Run the texts through the model and return the statistics of every weight's input."""
    chunked = _chunk_texts(model, settings)
    collector = Collector(settings.process_output)
    total = sum(len(chunks) for chunks in chunked)
    matrix = ImportanceMatrix(
        collector.entries, [str(path) for path in settings.texts], 0, settings.chunks.n_ctx
    )
    done = 0
    with open_context(model, settings.chunks.context(), collector.hook) as context:
        for path, chunks in zip(settings.texts, chunked, strict=True):
            # logits of every token: without them llama.cpp drops rows before the last layer's FFN
            for start, group in decode_chunks(context, chunks, settings.chunks, 0):
                collector.check()
                progress(Event("imatrix", done + start + len(group), total, "chunks", path.name))
            done += len(chunks)
    if not matrix.entries:
        raise MinitronError(
            "no matrix product was seen: the model has no weights to calibrate, "
            f"or chunks are shorter than {_MIN_TOKENS} tokens"
        )
    # llama-imatrix counts the chunks by the tokens seen: rows of tiny products are left out
    most = max(int(entry.counts.max()) for entry in matrix.entries.values())
    matrix.chunk_count = most // settings.chunks.n_ctx
    return matrix


def _chunk_texts(model: Model, settings: CollectSettings) -> list[Tokens]:
    if settings.chunks.n_ctx < _MIN_TOKENS:
        raise Usage(f"--ctx must be at least {_MIN_TOKENS} to collect an importance matrix")
    chunked, left = [], settings.chunks.limit
    for path in settings.texts:
        if left == 0:
            break
        chunks = chunk_text(model, read_text(path), settings.chunks, path.name)[:left]
        left = None if left is None else left - len(chunks)
        chunked.append(chunks)
    # texts that the limit leaves no chunk for count as empty
    chunked += [chunked[0][:0]] * (len(settings.texts) - len(chunked))
    return chunked


class Collector:
    """The callback that llama.cpp's scheduler calls for every node, and what it has summed."""

    def __init__(self, process_output: bool) -> None:
        self.entries: dict[str, Entry] = {}
        self.hook = api.ggml_backend_sched_eval_callback(self._called)
        self._process_output = process_output
        self._error: BaseException | None = None
        self._shared: _Reduction | None = None
        # the wanted weights in the order of the first graph, complete when a name comes again
        self._order: list[str] = []
        self._learning = True
        self._last = ""

    def check(self) -> None:
        """Raise what went wrong inside the callback, which itself must not raise."""
        if self._error is not None:
            raise self._error

    def _called(self, address: int, ask: bool, _data: object) -> bool:
        # an exception here would be swallowed by ctypes and give garbage: keep it for `check`
        try:
            if self._error is not None or interrupts.pending():
                return False
            node = Tensor.from_address(address)
            if ask:
                return self._wanted(node)
            name = weight_name(node)
            self._add(node, name)
            return not self._ends(name)
        except BaseException as error:
            self._error = error
            return False

    def _wanted(self, node: Tensor) -> bool:
        if node.op == OP_MUL_MAT_ID:
            return True
        if node.op != OP_MUL_MAT:
            return False
        source = node.src[1].contents
        if source.ne[1] < _MIN_TOKENS or source.type != _F32:
            return False
        name = weight_name(node)
        if not (name.startswith("blk.") or (self._process_output and name == "output.weight")):
            return False
        return not self._credit(node, name)

    def _credit(self, node: Tensor, name: str) -> bool:
        """Count a product whose input was just reduced for another one; it need not be awaited.

        q, k and v share their input and so their history of sums; so do gate and up.
        """
        weight, source = node.src[0].contents, node.src[1].contents
        entry = self._entry(name, weight.ne[2] * weight.ne[3], source.ne[0], counts=1)
        shared = self._shared
        if shared is None or not shared.serves(name, ctypes.addressof(source), entry.sums):
            return False
        entry.sums = shared.after.copy()
        entry.counts += shared.rows
        shared.names.add(name)
        return True

    def _ends(self, name: str) -> bool:
        # returning False for the last wanted product spares what follows: the vocabulary matrix
        if self._learning and name in self._order:
            self._learning = False
            self._last = self._order[-1]
        if self._learning:
            self._order.append(name)
        return not self._learning and name == self._last

    def _add(self, node: Tensor, name: str) -> None:
        if node.op == OP_MUL_MAT_ID:
            self._add_experts(node, name)
        else:
            self._add_dense(node, name)
        if not np.isfinite(self.entries[name].sums).all():
            raise MinitronError(
                f"the inputs of {name} are not finite: the model or the text breaks it",
                "check the model with minitron verify, or use F32 or BF16 weights",
            )

    def _add_dense(self, node: Tensor, name: str) -> None:
        weight, source = node.src[0].contents, node.src[1].contents
        matrices = weight.ne[2] * weight.ne[3]
        entry = self._entry(name, matrices, source.ne[0], counts=1)
        after = _add_squares(entry.sums, source, weight)
        rows = source.ne[1] * source.ne[2] * source.ne[3] // matrices
        address = ctypes.addressof(source)
        self._shared = _Reduction(address, entry.sums, after, rows, {name})
        entry.sums = after.copy()
        entry.counts += rows

    def _add_experts(self, node: Tensor, name: str) -> None:
        experts = node.src[0].contents.ne[2]
        inputs = activations(node.src[1].contents)[0]  # [tokens, slots, columns]
        chosen = _expert_ids(node.src[2].contents)  # [tokens, slots]
        entry = self._entry(name, experts, inputs.shape[-1], counts=experts)
        if chosen.min() < 0 or chosen.max() >= experts:
            raise MinitronError(f"{name} routes tokens to experts that do not exist")
        for slot in range(chosen.shape[1]):
            values = inputs[:, slot % inputs.shape[1]]
            for expert in np.unique(chosen[:, slot]):
                rows = values[chosen[:, slot] == expert]
                entry.sums[expert] = _sum_squares(entry.sums[expert], rows)
                entry.counts[expert] += len(rows)

    def _entry(self, name: str, matrices: int, columns: int, counts: int) -> Entry:
        if name not in self.entries:
            self.entries[name] = Entry(
                np.zeros((matrices, columns), np.float32), np.zeros(counts, np.int64)
            )
        return self.entries[name]


def weight_name(node: Tensor) -> str:
    """The name of the weight that a product multiplies with."""
    # the scheduler renames copies to DEVICE#name#number
    name: str = node.src[0].contents.name.decode()
    return name.split("#")[1] if "#" in name else name


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    size = ggml().ggml_nbytes(ctypes.addressof(tensor))
    if ggml().ggml_backend_buffer_is_host(tensor.buffer):
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(tensor.data))
    copy = np.empty(size, dtype=np.uint8)
    ggml().ggml_backend_tensor_get(ctypes.addressof(tensor), copy.ctypes.data, 0, size)
    return copy


def _strided(tensor: Tensor, dtype: type[np.generic]) -> NDArray[np.generic]:
    """All four dimensions, slowest first, with the strides that the tensor has."""
    return np.ndarray(
        shape=tuple(reversed(tensor.ne)),
        dtype=dtype,
        buffer=_bytes_of(tensor).data,
        strides=tuple(reversed(tensor.nb)),
    )


def activations(tensor: Tensor) -> NDArray[np.float32]:
    """A product's input [ne3, ne2, rows, columns], in place where the device is the host."""
    values: NDArray[np.float32] = _strided(tensor, np.float32)  # type: ignore[assignment]
    return values


def _expert_ids(tensor: Tensor) -> NDArray[np.int32]:
    values: NDArray[np.int32] = _strided(tensor, np.int32)[0, 0]
    return values


@dataclass(frozen=True)
class _Reduction:
    """Sums before and after the rows of one input, and the products that were counted with it."""

    address: int
    before: NDArray[np.float32]
    after: NDArray[np.float32]
    rows: int
    names: set[str]

    def serves(self, name: str, address: int, sums: NDArray[np.float32]) -> bool:
        # a name that comes again means that the graph runs anew in the same memory
        if address != self.address or name in self.names or sums.shape != self.before.shape:
            return False
        return bool((self.before == sums).all())


def _add_squares(sums: NDArray[np.float32], source: Tensor, weight: Tensor) -> NDArray[np.float32]:
    """`sums` [matrices, columns] plus x² of every row of an input [ne3, ne2, rows, columns]."""
    inputs = activations(source)
    total = sums.copy()
    for outer in range(inputs.shape[0]):
        for inner in range(inputs.shape[1]):
            matrix = (outer % weight.ne[3]) * weight.ne[2] + inner % weight.ne[2]
            total[matrix] = _sum_squares(total[matrix], inputs[outer, inner])
    return total


def _sum_squares(start: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """start + Σ rows², one row after the other in float32: reduce adds in this order on axis 0."""
    squares = rows * rows
    squares[0] += start
    total: NDArray[np.float32] = np.add.reduce(squares, axis=0)
    return total

"""The callback that sees every matrix product of a decode and sums its input.

Which products count, and how: IMatrixCollector of tools/imatrix (llama.cpp 0c1e57098), to the bit.
It does less work: products with the same input share one sum, and a decode ends at the last input
that counts, without the product that uses it.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import MinitronError
from minitron_engine.llama.binding import api
from minitron_engine.llama.library import OP_MUL_MAT, OP_MUL_MAT_ID, Tensor
from minitron_engine.process import interrupts, malloc_alignment
from minitron_quant.imatrix.accumulator import Accumulator
from minitron_quant.imatrix.matrix import Entry
from minitron_quant.imatrix.ordered_accumulation import AccumulationOrder
from minitron_quant.matmul_hook import activations, expert_ids, weight_name

_F32 = 0
_OP = Tensor.op.offset
_PRODUCTS = (OP_MUL_MAT, OP_MUL_MAT_ID)
MIN_TOKENS = 16  # llama-imatrix ignores smaller products


def first_half(group_size: int) -> int:
    """How many chunks of a group are its first half."""
    return (group_size + 1) // 2


def is_layer_weight(name: str) -> bool:
    """Whether a weight counts by default: those of the layers, not the output."""
    return name.startswith("blk.")


class Collector:
    """The callback that llama.cpp's scheduler calls for every node; it adds to `entries`.

    selects: whether the dense weight of a name counts. keep_logits: let decodes run to the end.
    group_size: chunks in the decode. decode_number: of the decode, where two collectors add in
    order.
    """

    def __init__(
        self,
        accumulator: Accumulator,
        entries: dict[str, Entry],
        selects: Callable[[str], bool] = is_layer_weight,
        keep_logits: bool = False,
    ) -> None:
        self.entries = entries
        self.group_size = 1
        self.decode_number = 0
        self.order: AccumulationOrder | None = None
        self.hook = api.ggml_backend_sched_eval_callback(self.observe)
        self._selects = selects
        self._keep_logits = keep_logits
        self._accumulator = accumulator
        self._error: BaseException | None = None
        self._leader = self
        self._shared: _SharedInput | None = None
        self._sharing: set[str] = set()
        # the selected weights in the order of the first graph; None for a shared input
        self._graph_order: dict[str, _LastInput | None] = {}
        self._learning = True
        self._last = _LastInput()

    def partner(self, order: AccumulationOrder) -> "Collector":
        """A collector for a second context, which adds to the same entries in a fixed order.

        This one's `check` raises the errors of both.
        """
        accumulator = self._accumulator.another()
        other = Collector(accumulator, self.entries, self._selects, self._keep_logits)
        other._leader, other._sharing = self, self._sharing
        self.order = other.order = order
        return other

    def check(self) -> None:
        """Raise the error of a callback, which itself must not raise.

        MinitronError names a weight whose inputs are not finite.
        """
        if self._error is not None:
            raise self._error
        for name, entry in self.entries.items():
            if not np.isfinite(entry.sums).all():
                raise MinitronError(
                    f"the inputs of {name} are not finite: the model or the text breaks it",
                    "check the model with minitron verify, or use F32 or BF16 weights",
                )

    def observe(self, address: int, ask: bool, _data: object) -> bool:
        """ggml_backend_sched_eval_callback: whether to compute up to this node, or to go on."""
        # an exception here would be swallowed by ctypes and give garbage: keep it for `check`
        try:
            # most nodes are not products: look at them only once
            product = ctypes.c_int.from_address(address + _OP).value in _PRODUCTS
            if ask and not product and address != self._last.address:
                return False
            if self._leader._error is not None or interrupts.pending():
                return ask  # the decode ends at a node that was asked for
            node = Tensor.from_address(address)
            if ask:
                selected = self._is_selected(node) if product else self._is_last_input(node)
                if selected and self._learning:
                    malloc_alignment.align()
                return selected
            name = weight_name(node) if product else self._last.name
            with self.order.adding(name, self.decode_number) if self.order else nullcontext():
                self._add(node, name)
            return name != self._last.name
        except BaseException as error:
            self._leader._error = error
            if self.order:
                self.order.stop()
            return False

    def _is_selected(self, node: Tensor) -> bool:
        name, shares = weight_name(node), False
        if node.op == OP_MUL_MAT:
            source = node.src[1].contents
            if source.ne[1] < MIN_TOKENS or source.type != _F32 or not self._selects(name):
                return False
            shares = self._share(node, ctypes.addressof(source), name)
        if self._learning:
            self._learn(name, None if shares else _LastInput.of(node, name))
        return not shares

    def _is_last_input(self, node: Tensor) -> bool:
        """Whether a node is the last input that counts; its product need not be computed."""
        same: bool = node.name == self._last.input
        return same and node.ne[1] >= MIN_TOKENS and node.type == _F32

    def _share(self, node: Tensor, source: int, name: str) -> bool:
        """Whether a product's input was just summed for another product.

        q, k and v share their input and so their sums, as one entry; so do gate and up.
        """
        shared = self._shared
        # a repeated name means that the graph runs again in the same memory
        if shared is None or source != shared.address or name in shared.names:
            return False
        if self.entries.get(name) is not shared.entry:
            weight, columns = node.src[0].contents, shared.entry.sums.shape[1]
            if not shared.begins_as(self._entry(name, weight.ne[2] * weight.ne[3], columns, 1)):
                return False
            self.entries[name] = shared.entry
            self._sharing.add(name)
        shared.names.add(name)
        return True

    def _learn(self, name: str, last: "_LastInput | None") -> None:
        """Find the last selected product: decodes end there, without the vocabulary matrix.

        A repeated name begins the second graph. Where the last product shares its input, the one
        before must not end the decode.
        """
        if name not in self._graph_order:
            self._graph_order[name] = last
            return
        self._learning = False
        last = list(self._graph_order.values())[-1]
        if last is not None and not self._keep_logits:
            self._last = last

    def _add(self, node: Tensor, name: str) -> None:
        if node.op == OP_MUL_MAT_ID:
            self._add_experts(node, name)
        elif node.op == OP_MUL_MAT:
            weight = node.src[0].contents
            self._add_dense(name, (weight.ne[2], weight.ne[3]), node.src[1].contents)
        else:
            self._add_dense(name, self._last.matrices, node)

    def _add_dense(self, name: str, shape: tuple[int, int], source: Tensor) -> None:
        if name in self._sharing:  # the rows would count for others too
            raise MinitronError(f"llama.cpp gave {name} inputs of its own, which it had not before")
        matrices = shape[0] * shape[1]
        entry = self._entry(name, matrices, source.ne[0], counts=1)
        before = entry.copy() if self._learning and self._leader is self else None
        inputs = activations(source)
        for outer in range(inputs.shape[0]):
            for inner in range(inputs.shape[1]):
                matrix = (outer % shape[1]) * shape[0] + inner % shape[0]
                for rows in self._halves(inputs[outer, inner]):
                    self._accumulator.add_rows(entry, matrix, rows)
        entry.counts += inputs.size // inputs.shape[-1] // matrices
        self._shared = _SharedInput(ctypes.addressof(source), before, entry, {name})

    def _halves(self, rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Rows as two collectors would see them: totals, unlike sums, depend on what is added at
        once, and must not depend on the number of threads.
        """
        cut = first_half(self.group_size) * (len(rows) // self.group_size)
        yield rows[:cut]
        if cut < len(rows):
            yield rows[cut:]

    def _add_experts(self, node: Tensor, name: str) -> None:
        experts = node.src[0].contents.ne[2]
        inputs = activations(node.src[1].contents)[0]  # [tokens, slots, columns]
        chosen = expert_ids(node.src[2].contents)  # [tokens, slots]
        entry = self._entry(name, experts, inputs.shape[-1], counts=experts)
        if chosen.min() < 0 or chosen.max() >= experts:
            raise MinitronError(f"{name} routes tokens to experts that do not exist")
        for slot in range(chosen.shape[1]):
            values = inputs[:, slot % inputs.shape[1]]
            for expert in np.unique(chosen[:, slot]):
                rows = values[chosen[:, slot] == expert]
                self._accumulator.add_rows(entry, int(expert), rows)
                entry.counts[expert] += len(rows)

    def _entry(self, name: str, matrices: int, columns: int, counts: int) -> Entry:
        if name not in self.entries:
            self.entries[name] = self._accumulator.entry(matrices, columns, counts)
        return self.entries[name]


@dataclass(frozen=True)
class _LastInput:
    """The input of the last selected product: the weight's name and matrices, the input's node."""

    name: str = ""
    matrices: tuple[int, int] = (1, 1)
    address: int = 0
    input: bytes = b""

    @classmethod
    def of(cls, node: Tensor, name: str) -> "_LastInput":
        if node.op == OP_MUL_MAT_ID:
            return cls(name)  # the experts of an input are not known before
        weight, source = node.src[0].contents, node.src[1].contents
        shape = weight.ne[2], weight.ne[3]
        return cls(name, shape, ctypes.addressof(source), source.name)


@dataclass(frozen=True)
class _SharedInput:
    """The input that was summed last, its entry, and the products that share it.

    before: the entry without these rows, in the first graph only.
    """

    address: int
    before: Entry | None
    entry: Entry
    names: set[str]

    def begins_as(self, other: Entry) -> bool:
        """Whether another product has had the same inputs so far: it can share the entry."""
        if self.before is None or not np.array_equal(self.before.sums, other.sums):
            return False
        return np.array_equal(self.before.counts, other.counts)

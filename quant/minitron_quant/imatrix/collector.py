"""The callback that sees every matrix product of a decode, and what it has summed.

Which products count, and how: IMatrixCollector of tools/imatrix (llama.cpp 0c1e57098), to the
bit. What is saved is work: products with the same input share one reduction, and a decode ends at
the last input that is to be seen, without the product that it goes into.
"""

import ctypes
from collections.abc import Iterator
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


def first_half(together: int) -> int:
    """How many of the chunks that are decoded together are the first half of them."""
    return (together + 1) // 2


class Collector:
    """The callback that llama.cpp's scheduler calls for every node; it adds to `entries`.

    whole: let decodes run to the end, because their logits are wanted. together: how many chunks
    are in the decode. number: that of the decode, where two collectors take turns.
    """

    def __init__(
        self,
        reducer: Accumulator,
        entries: dict[str, Entry],
        process_output: bool = False,
        whole: bool = False,
    ) -> None:
        self.entries = entries
        self.together = 1
        self.number = 0
        self.turns: AccumulationOrder | None = None
        self.hook = api.ggml_backend_sched_eval_callback(self._called)
        self._process_output = process_output
        self._whole = whole
        self._reducer = reducer
        self._error: BaseException | None = None
        self._leader = self
        self._shared: _Reduction | None = None
        self._credited: set[str] = set()
        # the wanted weights in the order of the first graph; None where they were credited
        self._order: dict[str, _End | None] = {}
        self._learning = True
        self._end = _End()

    def second(self, turns: AccumulationOrder) -> "Collector":
        """One for a decode beside this one's: it adds to the entries that this one has made.

        What goes wrong in either is told by this one.
        """
        other = Collector(self._reducer.another(), self.entries, self._process_output, self._whole)
        other._leader, other._credited = self, self._credited
        self.turns = other.turns = turns
        return other

    def check(self) -> None:
        """Raise what went wrong inside the callback, which itself must not raise; name a weight
        whose inputs are not finite.
        """
        if self._error is not None:
            raise self._error
        for name, entry in self.entries.items():
            if not np.isfinite(entry.sums).all():
                raise MinitronError(
                    f"the inputs of {name} are not finite: the model or the text breaks it",
                    "check the model with minitron verify, or use F32 or BF16 weights",
                )

    def _called(self, address: int, ask: bool, _data: object) -> bool:
        # an exception here would be swallowed by ctypes and give garbage: keep it for `check`
        try:
            # most nodes are no products: one look has to do for them
            product = ctypes.c_int.from_address(address + _OP).value in _PRODUCTS
            if ask and not product and address != self._end.address:
                return False
            if self._leader._error is not None or interrupts.pending():
                return False
            node = Tensor.from_address(address)
            if ask:
                wanted = self._wanted(node) if product else self._ends_with(node)
                if wanted and self._learning:
                    malloc_alignment.align()
                return wanted
            name = weight_name(node) if product else self._end.name
            with self.turns.adding(name, self.number) if self.turns else nullcontext():
                self._add(node, name)
            return name != self._end.name
        except BaseException as error:
            self._leader._error = error
            if self.turns:
                self.turns.stop()
            return False

    def _wanted(self, node: Tensor) -> bool:
        name, credited = weight_name(node), False
        if node.op == OP_MUL_MAT:
            source = node.src[1].contents
            if source.ne[1] < MIN_TOKENS or source.type != _F32 or not self._wants(name):
                return False
            credited = self._credit(node, ctypes.addressof(source), name)
        if self._learning:
            self._learn(name, None if credited else _End.of(node, name))
        return not credited

    def _ends_with(self, node: Tensor) -> bool:
        """Whether a node is the last input to be seen: the product with it need not be computed."""
        same: bool = node.name == self._end.input
        return same and node.ne[1] >= MIN_TOKENS and node.type == _F32

    def _wants(self, name: str) -> bool:
        return name.startswith("blk.") or (self._process_output and name == "output.weight")

    def _credit(self, node: Tensor, source: int, name: str) -> bool:
        """Whether a product's input was just reduced for another one; it need not be awaited.

        q, k and v share their input and so their sums, as one entry; so do gate and up.
        """
        shared = self._shared
        # a name that comes again means that the graph runs anew in the same memory
        if shared is None or source != shared.address or name in shared.names:
            return False
        if self.entries.get(name) is not shared.entry:
            weight, columns = node.src[0].contents, shared.entry.sums.shape[1]
            if not shared.begins_as(self._entry(name, weight.ne[2] * weight.ne[3], columns, 1)):
                return False
            self.entries[name] = shared.entry
            self._credited.add(name)
        shared.names.add(name)
        return True

    def _learn(self, name: str, end: "_End | None") -> None:
        """Find the last wanted product: decodes end there, without the vocabulary matrix.

        A name that comes again begins the second graph. Where the last one is only credited, the
        one before must not end the decode.
        """
        if name not in self._order:
            self._order[name] = end
            return
        self._learning = False
        last = list(self._order.values())[-1]
        if last is not None and not self._whole:
            self._end = last

    def _add(self, node: Tensor, name: str) -> None:
        if node.op == OP_MUL_MAT_ID:
            self._add_experts(node, name)
        elif node.op == OP_MUL_MAT:
            weight = node.src[0].contents
            self._add_dense(name, (weight.ne[2], weight.ne[3]), node.src[1].contents)
        else:
            self._add_dense(name, self._end.matrices, node)

    def _add_dense(self, name: str, shape: tuple[int, int], source: Tensor) -> None:
        if name in self._credited:  # the rows would count for others too
            raise MinitronError(f"llama.cpp gave {name} inputs of its own, which it had not before")
        matrices = shape[0] * shape[1]
        entry = self._entry(name, matrices, source.ne[0], counts=1)
        before = entry.copy() if self._learning and self._leader is self else None
        inputs = activations(source)
        for outer in range(inputs.shape[0]):
            for inner in range(inputs.shape[1]):
                matrix = (outer % shape[1]) * shape[0] + inner % shape[0]
                for rows in self._halves(inputs[outer, inner]):
                    self._reducer.add_rows(entry, matrix, rows)
        entry.counts += inputs.size // inputs.shape[-1] // matrices
        self._shared = _Reduction(ctypes.addressof(source), before, entry, {name})

    def _halves(self, rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Rows as two collectors would see them: totals, unlike sums, round by what is added at
        once, and are not to depend on the number of threads.
        """
        cut = first_half(self.together) * (len(rows) // self.together)
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
                self._reducer.add_rows(entry, int(expert), rows)
                entry.counts[expert] += len(rows)

    def _entry(self, name: str, matrices: int, columns: int, counts: int) -> Entry:
        if name not in self.entries:
            self.entries[name] = self._reducer.entry(matrices, columns, counts)
        return self.entries[name]


@dataclass(frozen=True)
class _End:
    """The last wanted product: its weight's name and numbers of matrices, and its input's node."""

    name: str = ""
    matrices: tuple[int, int] = (1, 1)
    address: int = 0
    input: bytes = b""

    @classmethod
    def of(cls, node: Tensor, name: str) -> "_End":
        if node.op == OP_MUL_MAT_ID:
            return cls(name)  # which experts an input goes to is not known before
        weight, source = node.src[0].contents, node.src[1].contents
        shape = weight.ne[2], weight.ne[3]
        return cls(name, shape, ctypes.addressof(source), source.name)


@dataclass(frozen=True)
class _Reduction:
    """The input that was reduced last, its entry, and the products that are counted with it.

    before: the entry without these rows, in the first graph only.
    """

    address: int
    before: Entry | None
    entry: Entry
    names: set[str]

    def begins_as(self, other: Entry) -> bool:
        """Whether another product has seen the same until these rows: it can share the entry."""
        if self.before is None or not np.array_equal(self.before.sums, other.sums):
            return False
        return np.array_equal(self.before.counts, other.counts)

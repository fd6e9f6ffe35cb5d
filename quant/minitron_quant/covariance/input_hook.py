"""Observe the inputs of a model's matrix products: which weights share one, and its values."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from minitron_engine.llama.batch import Batch
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import open_context
from minitron_engine.llama.library import OP_MUL_MAT, Tensor
from minitron_engine.llama.model import Model
from minitron_engine.llama.settings import ContextSettings
from minitron_engine.process import interrupts
from minitron_quant.array_backend import Floats
from minitron_quant.matmul_hook import activations, weight_name
from minitron_quant.model_files import EMBEDDING, OUTPUT

_F32 = 0
_PROBE_TOKENS = 16


@dataclass
class ModelInputs:
    """The inputs of a model's dense products, each named by its first weight.

    columns: how wide each is. taken_by: {weight: input}.
    """

    columns: dict[str, int] = field(default_factory=dict)
    taken_by: dict[str, str] = field(default_factory=dict)


def find_inputs(model: Model) -> ModelInputs:
    """Run a few tokens through the model to find which of its weights share an input.

    Weights of three dimensions are left out: each expert or head has its own inputs.
    """
    found = ModelInputs()
    first_at: dict[int, str] = {}

    def see(address: int, ask: bool, _data: object) -> bool:
        node = Tensor.from_address(address)
        if ask and _is_product(node):
            source, name = node.src[1].contents, weight_name(node)
            # within one graph addresses are unique
            first = first_at.setdefault(ctypes.addressof(source), name)
            found.taken_by.setdefault(name, first)
            found.columns.setdefault(first, source.ne[0])
        return False

    hook = api.ggml_backend_sched_eval_callback(see)
    settings = ContextSettings(n_ctx=_PROBE_TOKENS, n_batch=_PROBE_TOKENS)
    batch = Batch(_PROBE_TOKENS)
    tokens = np.arange(_PROBE_TOKENS, dtype=np.int32) % model.n_vocab
    batch.add(tokens, 0, 0, np.ones(_PROBE_TOKENS, bool))
    with open_context(model, settings, hook) as context:
        context.decode(batch)
    return found


def _is_product(node: Tensor) -> bool:
    if node.op != OP_MUL_MAT or node.src[1].contents.type != _F32:
        return False
    weight, name = node.src[0].contents, weight_name(node)
    if weight.ne[2] * weight.ne[3] > 1:
        return False
    return name.endswith(".weight") and (name.startswith("blk.") or name in (OUTPUT, EMBEDDING))


class InputHook:
    """The callback that passes the rows [tokens, columns] of chosen inputs to `take`.

    inputs: the weights that name them, in the order of the model. A decode ends after the last.
    """

    def __init__(self, inputs: list[str], take: Callable[[str, Floats], None]) -> None:
        self.hook = api.ggml_backend_sched_eval_callback(self._called)
        self._inputs = frozenset(inputs)
        self._last = inputs[-1]
        self._take = take
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise the error of a callback, which itself must not raise."""
        if self._error is not None:
            raise self._error

    def _called(self, address: int, ask: bool, _data: object) -> bool:
        # an exception here would be swallowed by ctypes and give garbage: keep it for `check`
        try:
            if self._error is not None or interrupts.pending():
                return ask  # the decode ends at a node that was asked for
            node = Tensor.from_address(address)
            name = weight_name(node) if node.op == OP_MUL_MAT else ""
            if ask or name not in self._inputs:
                return name in self._inputs
            rows = activations(node.src[1].contents)
            self._take(name, rows.reshape(-1, rows.shape[-1]).copy())
            return name != self._last
        except BaseException as error:
            self._error = error
            return False

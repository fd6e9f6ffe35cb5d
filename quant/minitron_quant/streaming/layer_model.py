"""One layer in llama.cpp: states of a chunk go in, inputs of products and new states come out."""

import ctypes
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from minitron_core.errors import MinitronError
from minitron_core.gguf import Gguf
from minitron_engine.llama.batch import Batch
from minitron_engine.llama.binding import api
from minitron_engine.llama.context import Context, open_context
from minitron_engine.llama.library import OP_MUL_MAT, Tensor
from minitron_engine.llama.settings import ContextSettings, ModelSettings
from minitron_engine.llama.weights import Weights, find_weights
from minitron_engine.loading import open_model
from minitron_engine.process import interrupts
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.matmul_hook import activations, weight_name
from minitron_quant.model_files import EMBEDDING, OUTPUT
from minitron_quant.streaming.layer_file import write_layer_file

# llama.cpp's names of values in the graph: the states after attention, and after the layer
AFTER_ATTENTION, AFTER_LAYER = "ffn_inp-0", "l_out-0"


class _GraphReader:
    """The callback that copies chosen values of a graph, and ends it after the last of them.

    A value is named as llama.cpp names it, or, for the input of a product, after the weight. The
    first time that input is read at the product, which is computed for it; from then on at the node
    that makes it, by its name.
    """

    def __init__(self) -> None:
        self.hook = api.ggml_backend_sched_eval_callback(self._called)
        self.found: dict[str, Floats] = {}
        self.error: BaseException | None = None
        self._inputs: dict[str, str] = {}
        self._wanted: dict[str, str] = {}
        self._seen: Counter[str] = Counter()

    def begin(self, wanted: Sequence[str]) -> None:
        """Look for these values in the next graph."""
        self._wanted = {self._inputs.get(name, name): name for name in wanted}
        self._seen.clear()
        self.found = {}

    def _called(self, address: int, ask: bool, _data: object) -> bool:
        # ctypes would swallow an exception here: keep it
        try:
            if self.error is not None or interrupts.pending():
                return ask  # the decode ends at a node that was asked for
            node = Tensor.from_address(address)
            name = node.name.decode()
            weight = weight_name(node) if node.op == OP_MUL_MAT else ""
            at_product = weight in self._wanted
            wanted = self._wanted.get(weight if at_product else name)
            if ask:
                self._seen[name] += 1
            if ask or wanted is None:
                return wanted is not None
            source = node.src[1].contents if at_product else node
            if at_product and self._seen[source.name.decode()] == 1:
                self._inputs[weight] = source.name.decode()
            values = activations(source)
            self.found[wanted] = values.reshape(-1, values.shape[-1]).copy()
            return len(self.found) < len(self._wanted)
        except BaseException as error:
            self.error = error
            return False


class LayerModel:
    """A model of one layer, as `open_layer` yields it.

    output: the name of the weight that gives the logits.
    """

    def __init__(
        self, context: Context, weights: Weights, reader: _GraphReader, width: int, n_ctx: int
    ) -> None:
        self.width, self.n_ctx = width, n_ctx
        self.output = OUTPUT if OUTPUT in weights else EMBEDDING
        self._context, self._weights, self._reader = context, weights, reader
        self._states = np.zeros((n_ctx, width), np.float32)
        self._batch = Batch(n_ctx)
        self._batch.add(np.zeros(n_ctx, np.int32), 0, 0, np.ones(n_ctx, np.bool_))
        self._struct = self._batch.struct()
        # states in the place of tokens; setattr, because the binding declares arrays
        pointer = ctypes.POINTER(ctypes.c_float)
        places = {"token": None, "embd": ctypes.cast(self._states.ctypes.data, pointer)}
        for field, place in places.items():
            setattr(self._struct, field, place)

    def put(self, name: str, data: Bytes) -> None:
        """Put bytes of its type into a weight of the layer, blk.0. in its name."""
        if name in self._weights:
            self._weights.put(name, data)

    def run(self, states: Floats, wanted: Sequence[str]) -> dict[str, Floats]:
        """Run the layer on the states of one chunk, [n_ctx, width], to the last wanted value.

        wanted: weights, whose inputs are read, and AFTER_ATTENTION or AFTER_LAYER. Returns
        [n_ctx, columns] of each. MinitronError where the graph lacks one, or it is not finite.
        """
        reader = self._reader
        self._states[:] = states
        reader.begin(wanted)
        self._context.clear()
        self._context.decode_struct(self._struct)
        if reader.error is not None:
            raise reader.error
        for name in wanted:
            if name not in reader.found:
                raise MinitronError(f"the graph of a layer has no {name}")
            if not np.isfinite(reader.found[name]).all():
                raise MinitronError(
                    f"the inputs of {name} are not finite: the model or the text breaks it",
                    "check the model with minitron verify, or use F32 or BF16 weights",
                )
        return reader.found


@contextmanager
def open_layer(
    shards: Sequence[Gguf],
    loading: ModelSettings,
    n_ctx: int,
    threads: int | None,
    *,
    decoded: bool,
) -> Iterator[LayerModel]:
    """A model of one layer, for chunks of n_ctx tokens; its weights are zeros until they are put.

    loading: of a file that is written for it, and removed once it is loaded. decoded: matrices are
    F32.
    """
    path = loading.path
    write_layer_file(shards, path, decoded=decoded)
    reader = _GraphReader()
    settings = ContextSettings(n_ctx=n_ctx, n_batch=n_ctx, threads=threads)
    try:
        with open_model(replace(loading, writable=True, context=settings)) as model:
            path.unlink()
            weights = find_weights(model)
            with open_context(model, settings, reader.hook) as context:
                width = int(api.llama_model_n_embd(model.handle))
                yield LayerModel(context, weights, reader, width, n_ctx)
    finally:
        path.unlink(missing_ok=True)

"""The full model and every level of it side by side, a layer at a time, over a whole text."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import numpy as np

from minitron_core.gguf import Gguf, TensorInfo
from minitron_engine.llama.settings import ModelSettings
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.blocks import decode_blocks
from minitron_quant.gptq.drift import HALVES, DriftSums, token_scale
from minitron_quant.gptq.sequential_store import FULL, SequentialStore
from minitron_quant.gptq.stages import BEFORE_LAYER, Stage
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of
from minitron_quant.streaming.layer_file import layer_tensors
from minitron_quant.streaming.layer_model import AFTER_LAYER, LayerModel, open_layer


class SideBySide:
    """One layer of the full model and of each level, as `open_side_by_side` yields it.

    The full model's matrices are in the types of the source; a level's are F32, decoded.
    """

    def __init__(
        self,
        shards: Sequence[Gguf],
        models: Mapping[str, LayerModel],
        store: SequentialStore,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._tensors = tensors_of(shards)
        self._models, self._store, self._pool = models, store, pool
        self._layer = 0
        self._states: dict[str, Floats] = {}
        for side, model in models.items():
            for name, (shard, info) in self._tensors.items():
                if not name.startswith("blk.") and name not in (EMBEDDING, OUTPUT):
                    model.put(name, _bytes(side, shard, info))

    @property
    def output(self) -> str:
        """The name of the matrix that gives the logits."""
        return self._models[FULL].output

    def load(self, layer: int) -> None:
        """Go to a layer: all its weights in the full model, its vectors alone at the levels."""
        self._layer = layer
        tensors = layer_tensors(self._tensors, layer)
        for side, model in self._models.items():
            self._states[side] = self._store.states(side, layer)
            for name, (shard, info) in tensors.items():
                if side == FULL or len(info.shape) == 1:
                    model.put(name, _bytes(side, shard, info))

    def put(self, level: str, name: str, values: Floats) -> None:
        """Put the decoded codes of a matrix into the layer of a level."""
        self._models[level].put(name, values.reshape(-1).view(np.uint8))

    def measure(self, stage: Stage, *, finish_full: bool) -> dict[str, DriftSums]:
        """Run the text through all models up to the input of a stage; the sums of each level.

        finish_full: the full model runs on to the end of the layer, and its new states are kept.
        """
        name = stage.weights[0]
        sums: dict[str, DriftSums] = {}
        adding: list[Future[None]] = []
        after_full = self._store.new_states(FULL, self._layer + 1) if finish_full else nullcontext()
        with after_full as after:
            chunks = list(self._chunks())
            more = dict.fromkeys([stage.after] * bool(stage.after) + [AFTER_LAYER] * finish_full)
            for number, rows in enumerate(chunks):
                half = HALVES * number // len(chunks)
                full = self._run(FULL, rows, stage, (*more,))
                if after is not None:
                    after[rows] = full[AFTER_LAYER]
                pending: list[Callable[[], None]] = []
                for level in self._levels:
                    ours = self._run(level, rows, stage)
                    drift = full[stage.residual] - ours[stage.residual] if stage.residual else None
                    if level not in sums:
                        height = 0 if drift is None else drift.shape[1]
                        sums[level] = DriftSums(full[name].shape[1], height)
                    scale = token_scale(full[stage.after]) if stage.after else None
                    pending += sums[level].additions(half, full[name], ours[name], drift, scale)
                # chunk after chunk, so that sums do not depend on the number of threads
                _wait(adding)
                adding = [self._pool.submit(each) for each in pending]
            _wait(adding)
        return sums

    def finish(self) -> None:
        """The states of the levels after a layer whose matrices are all fixed."""
        for level in self._levels:
            before, model = self._states[level], self._models[level]
            with self._store.new_states(level, self._layer + 1) as after:
                for rows in self._chunks():
                    after[rows] = model.run(before[rows], [AFTER_LAYER])[AFTER_LAYER]

    @property
    def _levels(self) -> list[str]:
        return [side for side in self._models if side != FULL]

    def _chunks(self) -> Iterator[slice]:
        """The tokens of each chunk."""
        n_ctx = self._models[FULL].n_ctx
        for start in range(0, len(self._states[FULL]), n_ctx):
            yield slice(start, start + n_ctx)

    def _run(
        self, side: str, rows: slice, stage: Stage, more: tuple[str, ...] = ()
    ) -> dict[str, Floats]:
        states = self._states[side][rows]
        return {
            BEFORE_LAYER: states,
            **self._models[side].run(states, (*stage.wanted, *more)),
        }


@contextmanager
def open_side_by_side(
    loading: ModelSettings,
    shards: Sequence[Gguf],
    levels: Sequence[str],
    store: SequentialStore,
    n_ctx: int,
    threads: int,
) -> Iterator[SideBySide]:
    """A layer of the full model and of each level, loaded so, for chunks of n_ctx tokens."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads, "drift"))
        models = {}
        for side in (FULL, *levels):
            one = replace(loading, path=store.folder / f"{side}.layer.gguf")
            layer = open_layer(shards, one, n_ctx, threads, decoded=side != FULL)
            models[side] = stack.enter_context(layer)
        yield SideBySide(shards, models, store, pool)


def _wait(adding: Sequence[Future[None]]) -> None:
    for each in adding:
        each.result()


def _bytes(side: str, shard: Gguf, info: TensorInfo) -> Bytes:
    """A tensor of the source as a side's layer holds it."""
    if side == FULL:
        return np.ascontiguousarray(shard.data(info))
    return decode_blocks(info.type, shard.data(info), (info.n_elements,)).view(np.uint8)

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
from minitron_quant.gptq.drift import HALVES, Drift, DriftSettings, DriftSums, token_scale
from minitron_quant.gptq.sequential_store import FULL, SequentialStore, TokenValues
from minitron_quant.gptq.stages import BEFORE_LAYER, Stage
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of
from minitron_quant.streaming.layer_file import layer_tensors
from minitron_quant.streaming.layer_model import AFTER_LAYER, LayerModel, open_layer


class SideBySide:
    """One layer of the full model and of each level, as `open_side_by_side` yields it.

    The full model's matrices are in the types of the source; a level's are F32, decoded. pool: the
    threads that add to sums.
    """

    def __init__(
        self,
        shards: Sequence[Gguf],
        models: Mapping[str, LayerModel],
        settings: DriftSettings,
        store: SequentialStore,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._tensors = tensors_of(shards)
        self._models, self._settings, self._store, self.pool = models, settings, store, pool
        self._layer = 0
        self._states: dict[str, Floats] = {}
        # values of the current layer, by side and name
        self._kept: dict[tuple[str, str], TokenValues] = {}
        # by the input of a stage
        self._scales: dict[str, Floats] = {}
        self._decoded: dict[tuple[str, str], Floats] = {}
        for side, model in models.items():
            for name, (shard, info) in self._tensors.items():
                if not name.startswith("blk.") and name not in (EMBEDDING, OUTPUT):
                    model.put(name, _bytes(side, shard, info))

    @property
    def output(self) -> str:
        """The name of the matrix that gives the logits."""
        return self._models[FULL].output

    def load(self, layer: int, stages: Sequence[Stage]) -> None:
        """Go to a layer: the text runs through it in the full model, and its values are kept.

        Levels get its vectors; their matrices are still to be put.
        """
        self._layer = layer
        self._decoded.clear()
        tensors = layer_tensors(self._tensors, layer)
        for side, model in self._models.items():
            self._states[side] = self._store.states(side, layer)
            for name, (shard, info) in tensors.items():
                if side == FULL or len(info.shape) == 1:
                    model.put(name, _bytes(side, shard, info))
        self._run_full(stages)

    def _run_full(self, stages: Sequence[Stage]) -> None:
        wanted = {name for stage in stages for name in (*stage.wanted, stage.after) if name}
        states, goes_on = self._states[FULL], bool(stages[-1].after)
        residual = [stage.input for stage in stages if stage.after]
        self._scales = {name: np.empty(len(states), np.float32) for name in residual}
        new = self._store.new_states(FULL, self._layer + 1) if goes_on else nullcontext()
        with new as after:
            for rows in self._chunks():
                found = self._models[FULL].run(states[rows], [*wanted])
                if after is not None:
                    after[rows] = found[AFTER_LAYER]
                for stage in stages:
                    self._keep(FULL, stage, rows, found)
                    if stage.after:
                        self._scales[stage.input][rows] = token_scale(found[stage.after])

    def _keep(self, side: str, stage: Stage, rows: slice, found: Mapping[str, Floats]) -> None:
        for name in stage.wanted:
            if (side, name) not in self._kept:
                self._kept[side, name] = self._store.token_values(found[name].shape[1])
            self._kept[side, name].write(rows, found[name])

    def put(self, level: str, name: str, values: Floats) -> None:
        """Put the decoded codes of a matrix, [rows, columns], into the layer of a level."""
        self._models[level].put(name, values.reshape(-1).view(np.uint8))
        self._decoded = {(level, name): values} | {
            key: each for key, each in self._decoded.items() if key[0] != level
        }

    def measure(self, stage: Stage) -> dict[str, DriftSums]:
        """Run the text through all levels up to the input of a stage; the sums of each."""
        sums: dict[str, DriftSums] = {}
        adding: list[Future[None]] = []
        weight = self._source(stage.input) if stage.residual else None
        chunks = list(self._chunks())
        for number, rows in enumerate(chunks):
            half = HALVES * number // len(chunks)
            full = {name: self._kept[FULL, name].read(rows) for name in stage.wanted}
            full[BEFORE_LAYER] = self._states[FULL][rows]
            pending: list[Callable[[], None]] = []
            for level in self._levels:
                ours = self._run(level, rows, stage)
                drift = self._drift(stage, full, ours, weight)
                if level not in sums:
                    height = 0 if drift.states is None else drift.states.shape[1]
                    sums[level] = DriftSums(drift.inputs.shape[1], height)
                scale = self._scales[stage.input][rows] if stage.after else None
                pending += sums[level].additions(half, drift, ours[stage.input], scale)
            # chunk after chunk, so that sums do not depend on the number of threads
            _wait(adding)
            adding = [self.pool.submit(each) for each in pending]
        _wait(adding)
        return sums

    def _run(self, level: str, rows: slice, stage: Stage) -> dict[str, Floats]:
        states = self._states[level][rows]
        found = self._models[level].run(states, stage.wanted)
        if stage.after == AFTER_LAYER:
            self._keep(level, stage, rows, found)
        return {BEFORE_LAYER: states, **found}

    def _drift(
        self,
        stage: Stage,
        full: Mapping[str, Floats],
        ours: Mapping[str, Floats],
        weight: Floats | None,
    ) -> Drift:
        beta, gamma = np.float32(self._settings.beta), np.float32(self._settings.gamma)
        inputs = beta * (full[stage.input] - ours[stage.input])
        if weight is None:
            return Drift(inputs)
        return Drift(inputs, weight, gamma * (full[stage.residual] - ours[stage.residual]))

    def finish(self, stage: Stage) -> None:
        """The states of the levels after a layer whose matrices are all fixed; stage: its last."""
        bias = stage.input.replace(".weight", ".bias")
        moved = self._source(bias) if bias in layer_tensors(self._tensors, self._layer) else 0
        for level in self._levels:
            inputs, states = (self._kept[level, name] for name in (stage.input, stage.residual))
            matrix = self._decoded[level, stage.input]
            with self._store.new_states(level, self._layer + 1) as after:

                def add(
                    rows: slice,
                    after: Floats = after,
                    inputs: TokenValues = inputs,
                    states: TokenValues = states,
                    matrix: Floats = matrix,
                ) -> None:
                    after[rows] = states.read(rows) + inputs.read(rows) @ matrix.T + moved

                list(self.pool.map(add, self._chunks()))

    def close(self) -> None:
        """Give back the room of what was kept."""
        for each in self._kept.values():
            each.close()

    @property
    def _levels(self) -> list[str]:
        return [side for side in self._models if side != FULL]

    def _chunks(self) -> Iterator[slice]:
        """The tokens of each chunk."""
        n_ctx = self._models[FULL].n_ctx
        for start in range(0, len(self._states[FULL]), n_ctx):
            yield slice(start, start + n_ctx)

    def _source(self, name: str) -> Floats:
        """A tensor of the layer as the source has it, decoded, [rows, columns] or [columns]."""
        shard, info = layer_tensors(self._tensors, self._layer)[name]
        return decode_blocks(info.type, shard.data(info), info.shape[::-1])


@contextmanager
def open_side_by_side(
    loading: ModelSettings,
    shards: Sequence[Gguf],
    settings: DriftSettings,
    store: SequentialStore,
    n_ctx: int,
    threads: int,
) -> Iterator[SideBySide]:
    """A layer of the full model and of each level, loaded so, for chunks of n_ctx tokens."""
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(threads, "drift"))
        models = {}
        for side in (FULL, *store.levels):
            one = replace(loading, path=store.folder / f"{side}.layer.gguf")
            layer = open_layer(shards, one, n_ctx, threads, decoded=side != FULL)
            models[side] = stack.enter_context(layer)
        sides = SideBySide(shards, models, settings, store, pool)
        stack.callback(sides.close)
        yield sides


def _wait(adding: Sequence[Future[None]]) -> None:
    for each in adding:
        each.result()


def _bytes(side: str, shard: Gguf, info: TensorInfo) -> Bytes:
    """A tensor of the source as a side's layer holds it."""
    if side == FULL:
        return np.ascontiguousarray(shard.data(info))
    return decode_blocks(info.type, shard.data(info), (info.n_elements,)).view(np.uint8)

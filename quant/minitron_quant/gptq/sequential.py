"""Sequential GPTQ: layer after layer, the full and the quantized model side by side.

Every matrix is fitted to the inputs that the quantized model really has, and repairs what is wrong
in them and in the residual stream so far (minitron_quant.gptq.drift). A layer has four stages, each
measured after the one before is fixed; last comes the output matrix. Several levels share the
states of the full model.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import F32, Gguf, row_bytes, tensor_bytes
from minitron_core.gguf.layers import in_layer
from minitron_core.progress import Event, Progress
from minitron_engine.llama.settings import ModelSettings
from minitron_engine.llama.tokenization import Tokens
from minitron_quant.array_backend import Bytes, Floats, best_arrays
from minitron_quant.blocks import decode_blocks
from minitron_quant.covariance.gram import block_edges
from minitron_quant.gptq.cholesky import BlockFactor, factor_block
from minitron_quant.gptq.cross_validation import CrossValidation, tried_type
from minitron_quant.gptq.drift import HALVES, DriftSettings, DriftSums
from minitron_quant.gptq.encode_rows import encode_rows, supports
from minitron_quant.gptq.output_hessian import OutputHessian
from minitron_quant.gptq.sequential_store import FULL, SequentialStore
from minitron_quant.gptq.side_by_side import SideBySide, open_side_by_side
from minitron_quant.gptq.stages import Stage, stages_of
from minitron_quant.gptq.targets import Weight, ridge_of, targets_of
from minitron_quant.gptq.two_sided import encode_two_sided, row_factors
from minitron_quant.model_files import EMBEDDING, OUTPUT, tensors_of
from minitron_quant.quantize.encode import EncodeTask, RefineRows, encode, encode_values
from minitron_quant.streaming.layer_file import layer_count, layer_tensors

# With so many tokens for each column this share of the mean diagonal is as good as any from a third
# to three times it: benchmarks/results/gptq.md.
_PLENTY, _DAMPING = 32, 0.03
# of coordinate descent: the first brings 7 % less error, the second 2 %, the third 1 %
_SWEEPS = 3
# the encoders divide by sums of importance
_MIN_IMPORTANCE = 1e-6


@dataclass(frozen=True)
class SequentialJob:
    """A model, the type of each tensor at each level, and the text as chunks [chunks, n_ctx].

    block: the widest block of columns in which codes compensate for each other. embedding: the
    importance of the columns of the embedding as it is looked up, [1, columns], or None.
    output_hessian: for two-sided GPTQ.
    """

    shards: Sequence[Gguf]
    levels: Mapping[str, Mapping[str, int]]
    chunks: Tokens
    drift: DriftSettings
    block: int
    threads: int | None = None
    embedding: Floats | None = None
    output_hessian: OutputHessian | None = None

    def tensors_by_layer(self) -> list[list[str]]:
        """The tensors whose codes are chosen: the embedding first, then those of each layer.

        The embedding of a tied model is chosen last, as the output matrix.
        """
        tensors = tensors_of(self.shards)
        tied, last = OUTPUT not in tensors, layer_count(self.shards) - 1
        found = [[] if tied else [EMBEDDING]]
        for layer in range(last + 1):
            output = (EMBEDDING if tied else OUTPUT) if layer == last else ""
            stages = stages_of(layer_tensors(tensors, layer), output)
            found.append([_source(name, layer) for stage in stages for name in stage.weights])
        return found


class SequentialGptq:
    """Chooses the codes of all levels of a job, and keeps them in a store."""

    def __init__(
        self,
        job: SequentialJob,
        store: SequentialStore,
        progress: Progress,
        loading: ModelSettings,
    ) -> None:
        self._job, self._store, self._progress, self._loading = job, store, progress, loading
        self._tensors = tensors_of(job.shards)
        self._layers = layer_count(job.shards)
        self._threads = job.threads or default_threads()

    def run(self) -> None:
        """Choose what is missing."""
        if self._store.layers < 0:
            self._embed()
        if self._store.layers == self._layers:
            return
        job, n_ctx = self._job, self._job.chunks.shape[1]
        with open_side_by_side(
            self._loading, job.shards, job.drift, self._store, n_ctx, self._threads
        ) as models:
            for layer in range(self._store.layers, self._layers):
                self._choose_layer(models, layer)
                self._store.finish_layer()
                self._progress(Event("gptq", layer + 1, self._layers, "layers"))
                for shard in self._job.shards:
                    shard.release()
        self._store.drop_states()

    def _embed(self) -> None:
        """The states before the first layer: rows of each side's embedding."""
        shard, info = self._tensors[EMBEDDING]
        source = np.ascontiguousarray(shard.data(info))
        chosen = EMBEDDING in self._job.tensors_by_layer()[0]
        n_ctx = self._job.chunks.shape[1]
        for side in (FULL, *self._job.levels):
            data, kind = source, info.type
            if side != FULL:
                kind = self._job.levels[side][EMBEDDING]
                task = EncodeTask(info, source, (kind,), self._job.embedding)
                data = self._encoded(task, kind)
                if chosen:
                    self._store.keep(side, EMBEDDING, data)
            rows = data.reshape(info.rows, -1)
            with self._store.new_states(side, 0) as states:
                for number, tokens in enumerate(self._job.chunks):
                    values = decode_blocks(kind, rows[tokens], (n_ctx, info.shape[0]))
                    states[number * n_ctx : (number + 1) * n_ctx] = values
        self._store.finish_layer()

    def _encoded(self, task: EncodeTask, kind: int) -> Bytes:
        return np.concatenate([slab.blocks[kind] for slab in encode([task], self._threads)])

    def _choose_layer(self, models: SideBySide, layer: int) -> None:
        last = layer == self._layers - 1
        stages = stages_of(layer_tensors(self._tensors, layer), models.output if last else "")
        models.load(layer, stages)
        for number, stage in enumerate(stages):
            missing = [level for level in self._job.levels if self._store.stages[level] == number]
            for level in self._job.levels:
                if level not in missing:
                    self._put(models, level, layer, stage)
            # new states are made of the inputs of the last stage
            if missing or (stage is stages[-1] and not last):
                for level, sums in models.measure(stage).items():
                    if level in missing:
                        self._choose_stage(models, level, layer, stage, sums)
            done = layer + (number + 1) / (len(stages) + 1)
            self._progress(Event("gptq", done, self._layers, "layers", stage.input))
        if not last:
            models.finish(stages[-1])

    def _choose_stage(
        self, models: SideBySide, level: str, layer: int, stage: Stage, sums: DriftSums
    ) -> None:
        """Choose the codes of a stage's weights at one level, and put them into its model."""
        sources = [_source(name, layer) for name in stage.weights]
        targets = [Weight(*self._tensors[source]) for source in sources]
        if EMBEDDING not in sources:  # a tied embedding has another task besides: it stays itself
            with ThreadPoolExecutor(self._threads, "solve") as pool:
                targets = self._targets(targets, sums, pool, level, stage.input)
        importance = _importance(sums.squares())
        refine = self._refine(sums, importance, targets[0])
        for source, target in zip(sources, targets, strict=True):
            if not self._store.keeps(level, source):
                codes = self._chosen(level, source, target, importance, refine)
                self._store.keep(level, source, codes)
        self._put(models, level, layer, stage)
        self._store.finish_stage(level)

    def _put(self, models: SideBySide, level: str, layer: int, stage: Stage) -> None:
        """Put the codes of a stage's weights into the model of a level."""
        for name in stage.weights:
            source = _source(name, layer)
            if source not in (EMBEDDING, OUTPUT):  # nothing follows the output matrix
                kind, info = self._job.levels[level][source], self._tensors[source][1]
                codes = self._store.codes(level, source, 0, tensor_bytes(kind, info.shape))
                models.put(level, name, decode_blocks(kind, codes, (info.rows, info.shape[0])))

    def _chosen(
        self,
        level: str,
        source: str,
        target: Weight,
        importance: Floats,
        refine: RefineRows | None,
    ) -> Bytes:
        """The codes of a weight; rows compensate for each other where its output Hessian is known.

        importance: of its columns.
        """
        info, hessian = target.info, self._job.output_hessian
        kind = self._job.levels[level][source]
        if kind == info.type:
            return np.ascontiguousarray(target.shard.data(info)).reshape(-1)
        refine = refine if supports(kind) else None
        rows = hessian.blocks(source, info.rows) if hessian is not None and refine else []
        if not rows:
            task = _task(target, kind, importance)
            if refine is not None:
                task = replace(task, refine=refine, refined_rows=best_arrays().rows)
            return self._encoded(task, kind)

        def encode_run(values: Floats) -> Bytes:
            blocks = np.empty(len(values) * row_bytes(kind, info.shape[0]), np.uint8)
            encode_values(info, kind, values, importance, refine, blocks)
            return blocks

        values, factors = target.values, row_factors(rows)
        return encode_two_sided(kind, values, factors, encode_run, self._threads)

    def _targets(
        self, weights: list[Weight], sums: DriftSums, pool: Executor, level: str, name: str
    ) -> list[Weight]:
        """The targets of a stage; name: of its first weight."""
        known = self._store.ridges[level]
        # ridges of one kind of input differ little from layer to layer
        ridge = ridge_of(weights, sums, self._job.drift, pool, known.get(name))
        if self._job.drift.ridge is None:
            known[name] = ridge
        return targets_of(weights, sums, ridge, pool)

    def _refine(self, sums: DriftSums, importance: Floats, target: Weight) -> RefineRows | None:
        """What chooses codes for an input; None where ggml's do better on another text.

        target: of one of the weights, to try dampings on.
        """
        damping, columns = self._job.drift.damping, target.info.shape[0]
        if damping is None and sums.tokens >= _PLENTY * columns:
            damping = _DAMPING
        if damping is None:
            tried = tried_type(columns)
            validation = CrossValidation(
                target.sample()[0],
                importance,
                lambda half, share: self._factors(sums, share, [half]),
            )
            damping = None if tried is None else validation.damping(tried)
        if damping is None:
            return None
        blocks = self._factors(sums, damping, range(HALVES))
        return partial(encode_rows, blocks=blocks, arrays=best_arrays(), sweeps=_SWEEPS)

    def _factors(self, sums: DriftSums, damping: float, halves: Sequence[int]) -> list[BlockFactor]:
        found = []
        for start, end in block_edges(sums.columns, self._job.block):
            metric = sums.metric(halves, slice(start, end))
            found.append(factor_block(start, metric.astype(np.float64), damping))
        return found


def _source(name: str, layer: int) -> str:
    """The name in the model of a tensor of a layer's file."""
    return name if name in (EMBEDDING, OUTPUT) else in_layer(name, layer)


def _task(target: Weight, kind: int, importance: Floats) -> EncodeTask:
    """What encodes the target of a weight; importance: of its columns."""
    info = replace(target.info, type=F32, nbytes=4 * target.info.n_elements)
    return EncodeTask(info, target, (kind,), importance[None])


def _importance(squares: Floats) -> Floats:
    """The mean squares of the columns; one without inputs gets a small weight."""
    raised = np.maximum(squares, (_MIN_IMPORTANCE * squares.mean(dtype=np.float64)) or 1)
    return np.ascontiguousarray(raised, np.float32)

"""Sequential GPTQ as a quantization uses it: texts become the codes of every level."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minitron_core import stop
from minitron_core.errors import MinitronError, Unsupported
from minitron_core.gguf import KeyValue
from minitron_core.hashing import file_sha256, fingerprint, model_fingerprint
from minitron_core.progress import Event, Progress
from minitron_engine.llama.library import LLAMA_CPP_COMMIT
from minitron_engine.llama.model import Model
from minitron_engine.llama.tokenization import Tokens
from minitron_engine.loading import open_model
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.chunking import ChunkSettings, chunk_texts
from minitron_quant.covariance.collect import BLOCK
from minitron_quant.gptq.drift import DriftSettings
from minitron_quant.gptq.estimate import Method, planned_gptq
from minitron_quant.gptq.forecast import Forecast, forecast_sequential
from minitron_quant.gptq.output_gradients import GradientSettings, collect_output_hessian
from minitron_quant.gptq.output_hessian import BLOCK as ROWS
from minitron_quant.gptq.output_hessian import HessianOrigin, OutputHessian
from minitron_quant.gptq.sequential import SequentialGptq, SequentialJob
from minitron_quant.gptq.sequential_store import SequentialStore
from minitron_quant.gptq.stages import kept_columns, stages_of
from minitron_quant.gptq.transformers_model import check_transformers, gradient_memory
from minitron_quant.imatrix.collect import CollectSettings, collect
from minitron_quant.imatrix.files import write_imatrix
from minitron_quant.model_files import EMBEDDING, open_model_files, tensors_of
from minitron_quant.quantize.importance import PlainCodes, load_importance
from minitron_quant.quantize.plan import requires_imatrix
from minitron_quant.quantize.prepare import (
    LevelOutput,
    QuantizeJob,
    QuantizeSettings,
    folder_of,
    model_name,
    prepare,
)
from minitron_quant.streaming.layer_file import (
    layer_count,
    layer_tensors,
    reason_not_streamed,
)

# below so many tokens for each column of a block its sums are mostly noise
_TOKENS_PER_COLUMN = 4
# that have a gradient, spread over the text: four times as many gain 2 %
_GRADIENT_TOKENS = 20_480
_FORMAT = 2  # of what is kept to continue; raised where codes come out differently


@dataclass(frozen=True)
class SequentialSettings:
    """What to calibrate on.

    block: the widest block of columns that compensate for each other. two_sided: rows compensate
    for each other, too, by the gradients at their outputs.
    """

    texts: tuple[Path, ...]
    chunks: ChunkSettings = ChunkSettings()
    block: int = BLOCK
    drift: DriftSettings = field(default_factory=DriftSettings)
    two_sided: bool = False

    @property
    def method(self) -> Method:
        """As the files' metadata have it."""
        return "two-sided" if self.two_sided else "sequential"


class SequentialLevels:
    """The codes of a model's levels, chosen when they are asked for; a prepare.LevelCodes.

    Raises Usage for texts that are too short, Unsupported where layers cannot run one by one.
    """

    def __init__(self, quantize: QuantizeSettings, settings: SequentialSettings) -> None:
        self._quantize, self._settings = quantize, settings
        self._shards = open_model_files(quantize.source)
        reason = reason_not_streamed(self._shards)
        if reason:
            raise Unsupported(reason, "independent GPTQ takes every model")
        trained = self._shards[0].get(f"{self._architecture}.context_length")
        if isinstance(trained, int) and 0 < trained < settings.chunks.n_ctx:
            # no longer than the texts that the model was trained on
            settings = replace(settings, chunks=replace(settings.chunks, n_ctx=trained))
            self._settings = settings
        with open_model(replace(quantize.loading, vocab_only=True)) as model:
            self._chunks = _chunks_of(model, settings)
        if settings.two_sided and self._gradients.collected() is None:
            check_transformers(self._shards, self._chunks.shape[1])
        self._store: SequentialStore | None = None

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The SHA-256 of every calibration text."""
        return tuple(map(file_sha256, self._settings.texts))

    @property
    def document(self) -> Mapping[str, Any]:
        """What the codes depend on besides the source and the types."""
        names = [text.name for text in self._settings.texts]
        more: dict[str, Any] = {}
        if self._settings.two_sided:
            more["two_sided"] = {"tokens": self._gradients.chunks.size, "rows": ROWS}
        return {
            "texts": dict(zip(names, self.texts, strict=True)),
            "tokens": self._chunks.size,
            "context": self._chunks.shape[1],
            "block": self._settings.block,
            **asdict(self._settings.drift),
            **more,
        }

    @property
    def made_from(self) -> str:
        """One hash over the document."""
        return fingerprint(json.dumps(self.document, sort_keys=True))

    @property
    def keys(self) -> tuple[KeyValue, ...]:
        """The metadata that records how the codes are chosen."""
        return self._planned().keys

    def job(self, settings: QuantizeSettings) -> QuantizeJob:
        """The quantization of levels with these codes."""
        return prepare(settings, self._planned(), level_codes=self)

    def plain_job(self, settings: QuantizeSettings) -> QuantizeJob:
        """The same levels with ggml's codes and the importance matrix of the same texts."""
        imatrix = settings.imatrix or self._imatrix()
        return prepare(replace(settings, imatrix=imatrix))

    def _imatrix(self) -> Path:
        path = folder_of(self._quantize) / f"{model_name(self._quantize.source)}.gptq-imatrix.gguf"
        chunks = self._settings.chunks
        wanted = CollectSettings(self._settings.texts, chunks, process_output=True)
        context = chunks.context()
        with open_model(replace(self._quantize.loading, context=context)) as model:
            write_imatrix(path, collect(model, wanted))
        return path

    def _planned(self) -> PlainCodes:
        names = [text.name for text in self._settings.texts]
        plain = planned_gptq(
            self._settings.method, names, self._shards, self._chunks.size, self._settings.block
        )
        return replace(plain, notes=self.notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """A warning if the text is short for the width of the inputs."""
        widest = max(self._columns.values())
        if self._chunks.size >= _TOKENS_PER_COLUMN * widest:
            return ()
        return (
            f"{self._chunks.size} tokens are few for inputs of {widest} columns: more text would "
            "gain more",
        )

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {
            name: info.shape[0]
            for name, (_, info) in tensors_of(self._shards).items()
            if name in self.names
        }

    @cached_property
    def names(self) -> frozenset[str]:
        """The tensors whose codes are chosen."""
        empty = SequentialJob(
            self._shards, {}, self._chunks, self._settings.drift, self._settings.block
        )
        return frozenset(name for layer in empty.tensors_by_layer() for name in layer)

    def forecast(self, outputs: Sequence[LevelOutput]) -> Forecast:
        """What the codes of these levels take, before anything is collected."""
        job = self._job_of(outputs, None)
        return self._forecast(job, self._open_store(job), outputs)

    def choose(self, outputs: Sequence[LevelOutput], progress: Progress) -> None:
        """Choose the codes of these levels; continues where it was stopped.

        Raises OutOfResources for a lack of disk or memory, MinitronError for a changed source.
        """
        job = self._job_of(outputs, self._output_hessian(progress))
        self._store = store = self._open_store(job)
        store.begin(sum(output.bytes for output in outputs))
        layers, done = layer_count(self._shards), max(0, store.layers)
        takes = self._forecast(job, store, outputs)
        progress(Event("gptq", done, layers, "layers", note=str(takes)))
        before, kept = self._source_version(), f"kept in {self._folder}"
        with stop.keeping(lambda: f"{max(0, store.layers)} of {layers} layers are {kept}"):
            SequentialGptq(job, store, progress, self._quantize.loading).run()
        if self._source_version() != before:
            raise MinitronError(
                f"{self._quantize.source} was changed while it was read",
                "run it again once it is complete",
            )

    def _job_of(
        self, outputs: Sequence[LevelOutput], hessian: OutputHessian | None
    ) -> SequentialJob:
        return SequentialJob(
            self._shards,
            {output.name: output.planned.types for output in outputs},
            self._chunks,
            self._settings.drift,
            self._settings.block,
            self._quantize.threads,
            self._embedding_importance(outputs),
            hessian,
        )

    def _forecast(
        self, job: SequentialJob, store: SequentialStore, outputs: Sequence[LevelOutput]
    ) -> Forecast:
        left = layer_count(self._shards) - max(0, store.layers)
        disk = store.bytes + sum(output.bytes for output in outputs)
        takes = forecast_sequential(job, left, disk)
        if self._settings.two_sided:
            return takes.two_sided(gradient_memory(self._shards[0], self._chunks.shape[1]))
        return takes

    @cached_property
    def _gradients(self) -> GradientSettings:
        """What two-sided GPTQ collects, and keeps beside the output."""
        given, (_, n_ctx) = self._quantize, self._chunks.shape
        path = folder_of(given) / f"{model_name(given.source)}.output-hessian.gguf"
        count = min(len(self._chunks), max(1, _GRADIENT_TOKENS // n_ctx))
        chunks = self._chunks[np.linspace(0, len(self._chunks) - 1, count).astype(int)]
        sizes = chunks.size, self._chunks.size, n_ctx
        origin = HessianOrigin(model_fingerprint(self._shards), self.texts, *sizes)
        return GradientSettings(path, origin, chunks, given.threads)

    def _output_hessian(self, progress: Progress) -> OutputHessian | None:
        if not self._settings.two_sided:
            return None
        loading, shard = self._quantize.loading, self._shards[0]
        return collect_output_hessian(loading, shard, self._gradients, progress)

    def _open_store(self, job: SequentialJob) -> SequentialStore:
        layer = layer_tensors(tensors_of(self._shards), 0)
        columns = {name: info.shape[0] for name, (_, info) in layer.items()}
        kept = kept_columns(stages_of(layer), columns, self._width, len(job.levels))
        shape = self._chunks.size, self._width
        return SequentialStore(self._folder, self._state_of(job), shape, [*job.levels], kept)

    def _embedding_importance(self, outputs: Sequence[LevelOutput]) -> Floats | None:
        """The importance matrix's, or ones where an encoder insists on an entry."""
        given, columns = self._quantize, tensors_of(self._shards)[EMBEDDING][1].shape[0]
        weights = load_importance(given.imatrix, given.include, given.exclude).weights
        if EMBEDDING in weights and weights[EMBEDDING].size == columns:
            return np.ascontiguousarray(weights[EMBEDDING].reshape(1, columns))
        needed = (
            requires_imatrix(EMBEDDING, each.planned.types[EMBEDDING], each.planned.level)
            for each in outputs
        )
        return np.ones((1, columns), np.float32) if any(needed) else None

    @property
    def _folder(self) -> Path:
        return folder_of(self._quantize) / f".{model_name(self._quantize.source)}.sequential"

    @property
    def _width(self) -> int:
        return int(self._shards[0].get(f"{self._architecture}.embedding_length"))

    @property
    def _architecture(self) -> str:
        return str(self._shards[0].get("general.architecture"))

    def _source_version(self) -> list[tuple[int, int]]:
        found = [shard.path.stat() for shard in self._shards]
        return [(each.st_size, each.st_mtime_ns) for each in found]

    def _state_of(self, job: SequentialJob) -> str:
        """A hash over all that states and codes depend on."""
        types = {level: dict(types) for level, types in job.levels.items()}
        model = model_fingerprint(self._shards)
        inputs = [self._source_version(), types, self.document, LLAMA_CPP_COMMIT, _FORMAT]
        embedding = () if job.embedding is None else (job.embedding.tobytes(),)
        hessian = () if job.output_hessian is None else (job.output_hessian.made_from,)
        return fingerprint(model, json.dumps(inputs, sort_keys=True), *embedding, *hessian)

    def read(self, level: str, name: str, start: int, size: int) -> Bytes:
        """Some bytes of a tensor's codes, after `choose`."""
        assert self._store is not None  # choose comes first
        return self._store.codes(level, name, start, size)

    def finish(self) -> None:
        """Remove states and codes."""
        if self._store is not None:
            self._store.remove()


def _chunks_of(model: Model, settings: SequentialSettings) -> Tokens:
    """The chunks of all texts, as they go in."""
    chunks = chunk_texts(model, settings.texts, settings.chunks).copy()
    if model.add_bos:
        chunks[:, 0] = model.bos
    return chunks

"""A quantization before it runs: its settings, planned and checked."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from minitron_core.errors import Usage
from minitron_core.gguf import (
    TYPE,
    Gguf,
    KeyValue,
    ShardName,
    TensorInfo,
    TensorSpec,
    encode_header,
    file_size,
    model_stem,
)
from minitron_core.hashing import fingerprint
from minitron_core.progress import Progress
from minitron_engine.llama.settings import EVERY_GPU, GpuLayers, ModelSettings, Placement
from minitron_quant.array_backend import Bytes, Floats
from minitron_quant.levels import Level
from minitron_quant.model_files import open_model_files
from minitron_quant.quantize.encode import RefineRows, TensorBytes
from minitron_quant.quantize.fallbacks import fallback_notes
from minitron_quant.quantize.importance import (
    Importance,
    foreign_matrix,
    load_importance,
    match_importance,
    missing_entries,
)
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.plan import (
    LevelPlan,
    TypePlan,
    level_metadata,
    make_plan,
    split_metadata,
)

Replace = Literal["never", "outdated", "always"]
_FULL_TYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class QuantizeSettings:
    """Which levels to make of which model, and where.

    output: the file of a single level; otherwise files go to `directory`, or beside the source.

    include, exclude: parts of tensor names, of the importance matrix's entries to use. errors:
    where to write the encoding errors. replace: what may be overwritten: nothing, files made from
    something else, or all. gpu_layers, placement: for GPTQ and mixes, which run the source.
    """

    source: Path
    levels: tuple[Level, ...]
    directory: Path | None = None
    output: Path | None = None
    imatrix: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    options: QuantizeOptions = QuantizeOptions()
    errors: Path | None = None
    threads: int | None = None
    replace: Replace = "never"
    gpu_layers: GpuLayers = "auto"
    placement: Placement = EVERY_GPU

    @property
    def loading(self) -> ModelSettings:
        """How the source is loaded where it runs."""
        return ModelSettings(self.source, self.gpu_layers, placement=self.placement)


@dataclass(frozen=True)
class OutputFile:
    """One file before it is written: the only one of a level, or a shard."""

    path: Path
    metadata: list[KeyValue]
    specs: list[TensorSpec]

    @property
    def bytes(self) -> int:
        """The file's exact size."""
        return file_size(self.metadata, self.specs)


@dataclass(frozen=True)
class LevelOutput:
    """One level's files before they are written. recipe: a hash of everything but the weights."""

    planned: LevelPlan
    files: tuple[OutputFile, ...]
    recipe: str

    @property
    def name(self) -> str:
        """The name of the level."""
        return self.planned.level.name

    @property
    def path(self) -> Path:
        """The file, or the first shard, which stands for all."""
        return self.files[0].path

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)


class CodeRefiner(Protocol):
    """Improves ggml's codes of a whole model, tensor by tensor, as gptq.encoder does."""

    @property
    def file(self) -> Path | None:
        """The file that the codes depend on, hashed as one of the job's inputs."""

    @property
    def weights(self) -> Mapping[str, Floats]:
        """The importance of columns by tensor, [1, columns], used without an importance matrix."""

    @property
    def keys(self) -> tuple[KeyValue, ...]:
        """Metadata of the files: how the codes were chosen."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know before the work."""

    @property
    def warning(self) -> str:
        """What a user should know after the work; empty if nothing."""

    @property
    def rows(self) -> int:
        """How many rows are refined at a time."""

    def of(self, name: str) -> RefineRows | None:
        """What refines the rows of a tensor; None where ggml's codes stay."""


class LevelCodes(Protocol):
    """Chooses the codes of whole tensors for each level by itself, as gptq.sequential_levels does.

    Tensors that it does not name are encoded as always.
    """

    @property
    def names(self) -> Collection[str]:
        """The tensors whose codes it chooses."""

    @property
    def document(self) -> Mapping[str, Any]:
        """What the codes depend on besides the source and the types, for the manifest."""

    def choose(self, outputs: "Sequence[LevelOutput]", progress: Progress) -> None:
        """Choose the codes of levels that are to be written; continues where it was stopped."""

    def read(self, level: str, name: str, start: int, size: int) -> Bytes:
        """Some bytes of a tensor's codes, after `choose`."""

    def finish(self) -> None:
        """Remove what is kept to continue, once all files are there."""


@dataclass(frozen=True)
class ConvertedSource:
    """A checkpoint as the full-precision file that converting it would write.

    header: that file without most of its data. read: makes the bytes of a tensor as they are asked
    for. files: what they are made from.
    """

    header: Gguf
    read: Callable[[TensorInfo], TensorBytes]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class QuantizeJob:
    """A quantization that is planned and checked, ready to run or to be shown."""

    settings: QuantizeSettings
    shards: list[Gguf]
    plan: TypePlan
    weights: dict[str, Floats]
    outputs: list[LevelOutput]
    notes: tuple[str, ...]
    refiner: CodeRefiner | None = None
    converted: ConvertedSource | None = None
    level_codes: LevelCodes | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the weights are read from."""
        return self.converted.files if self.converted else tuple(s.path for s in self.shards)

    def data(self, name: str) -> TensorBytes:
        """The bytes of a tensor of the source."""
        shard, info = self.plan.tensors[name]
        return self.converted.read(info) if self.converted else shard.data(info)

    @property
    def elements(self) -> int:
        """The number of weights of the model."""
        return sum(info.n_elements for _, info in self.plan.tensors.values())

    def bits_per_weight(self, output: LevelOutput) -> float:
        """Bits per weight of a level: all tensors, without metadata."""
        data = sum(spec.nbytes for spec in self.plan.specs(output.planned))
        return round(8 * data / self.elements, 4)


def count_types(planned: LevelPlan) -> dict[str, int]:
    """The number of tensors of each type."""
    return dict(Counter(TYPE[ggml_type].name for ggml_type in planned.types.values()))


def options_document(settings: QuantizeSettings) -> dict[str, Any]:
    """The options that differ from their defaults, for the manifest."""
    options = settings.options
    given: dict[str, Any] = {
        "pure": options.pure,
        "tensor_types": [
            f"{pattern}={TYPE[ggml_type].name}" for pattern, ggml_type in options.tensor_types
        ],
        "output_tensor_type": _type_name(options.output_type),
        "token_embedding_type": _type_name(options.embedding_type),
        "leave_output_tensor": options.leave_output,
        "allow_requantize": options.allow_requantize,
        "keep_split": options.keep_split,
        "override_kv": [f"{entry.key}={entry.value}" for entry in options.overrides],
        "include_weights": list(settings.include),
        "exclude_weights": list(settings.exclude),
    }
    return {name: value for name, value in given.items() if value}


def _type_name(ggml_type: int | None) -> str | None:
    return None if ggml_type is None else TYPE[ggml_type].name


def model_name(path: Path) -> str:
    """The model's name: that of its full-precision file without shard number and type."""
    stem = model_stem(path)
    for name in _FULL_TYPES:
        for end in (f"-{name}", f".{name}"):
            if stem.upper().endswith(end):
                return stem[: -len(end)]
    return stem


def prepare(
    settings: QuantizeSettings,
    refiner: CodeRefiner | None = None,
    converted: ConvertedSource | None = None,
    level_codes: LevelCodes | None = None,
) -> QuantizeJob:
    """Plan a job and check everything that can be checked before the first byte is written.

    converted: where the weights come from, if `settings.source` is only a name for them.
    Raises Usage, ImatrixNeeded, Unsupported, Damaged.
    """
    if settings.output is not None and len(settings.levels) != 1:
        raise Usage("-o names one file, but there are several levels", "use -d DIR")
    shards = [converted.header] if converted else open_model_files(settings.source)
    importance = load_importance(settings.imatrix, settings.include, settings.exclude)
    source = "importance matrix" if importance.weights else "covariance"
    if refiner is not None:
        weights = importance.weights or refiner.weights
        importance = replace(importance, weights=weights, keys=(*importance.keys, *refiner.keys))
    plan = make_plan(shards, settings.levels, settings.options, bool(importance.weights))
    tensors = {name: info for name, (_, info) in plan.tensors.items()}
    matched = match_importance(importance, tensors, plan.levels)
    outputs = [_level_output(settings, shards, plan, p, importance) for p in plan.levels]
    notes: tuple[str, ...] = ()
    if importance.weights:
        notes += missing_entries(matched, tensors, plan.levels, source)
    notes += foreign_matrix(importance, shards)
    notes += refiner.notes if refiner else ()
    fallbacks = {planned.level.name: planned.fallbacks for planned in plan.levels}
    notes += fallback_notes(fallbacks, len(tensors))
    return QuantizeJob(
        settings, shards, plan, matched, outputs, notes, refiner, converted, level_codes
    )


def manifest_path(settings: QuantizeSettings) -> Path:
    """Where the manifest of the finished levels is."""
    return folder_of(settings) / f"{model_name(settings.source)}.manifest.json"


def folder_of(settings: QuantizeSettings) -> Path:
    """The folder that the levels go to."""
    if settings.output is not None:
        return settings.output.parent
    return settings.directory or settings.source.parent


def _level_output(
    settings: QuantizeSettings,
    shards: Sequence[Gguf],
    plan: TypePlan,
    planned: LevelPlan,
    importance: Importance,
) -> LevelOutput:
    file_name = f"{model_name(settings.source)}-{planned.level.name}.gguf"
    path = settings.output or folder_of(settings) / file_name
    metadata = level_metadata(shards[0], planned.level, settings.options.overrides, importance.keys)
    files = [OutputFile(path, metadata, plan.specs(planned))]
    if settings.options.keep_split and len(shards) > 1:
        files = _split_like(shards, files[0])
    sources = {shard.path.resolve() for shard in shards}
    if any(file.path.resolve() in sources for file in files):
        raise Usage(f"{path} is the source itself", "choose another folder with -d")
    headers = [encode_header(file.metadata, file.specs) for file in files]
    chosen = (*settings.include, "-", *settings.exclude)
    return LevelOutput(planned, tuple(files), fingerprint(*headers, *chosen))


def _split_like(shards: Sequence[Gguf], whole: OutputFile) -> list[OutputFile]:
    """The shards of a level, each with the tensors of the source's shard."""
    stem = whole.path.name.removesuffix(".gguf")
    files = []
    for number, shard in enumerate(shards):
        names = {info.name for info in shard.tensors}
        path = whole.path.with_name(str(ShardName(stem, number + 1, len(shards))))
        metadata = [
            *(whole.metadata if number == 0 else []),
            *split_metadata(number, len(shards), len(whole.specs)),
        ]
        specs = [spec for spec in whole.specs if spec.name in names]
        files.append(OutputFile(path, metadata, specs))
    return files

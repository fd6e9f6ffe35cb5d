"""A quantization job before it runs: what is asked for, planned and checked."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from minitron_core.errors import Usage
from minitron_core.gguf import (
    TYPE,
    Gguf,
    KeyValue,
    ShardName,
    TensorSpec,
    encode_header,
    file_size,
    model_stem,
)
from minitron_core.hashing import fingerprint
from minitron_quant.levels import Level
from minitron_quant.model_files import open_model_files
from minitron_quant.quantize.importance import (
    Importance,
    foreign_matrix,
    load_importance,
    match_importance,
    missing_entries,
)
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.plan import LevelPlan, Plan, level_metadata, make_plan, split_metadata

if TYPE_CHECKING:
    from minitron_quant.gptq.estimate import PlannedFeedback
    from minitron_quant.gptq.refinement import Feedback

Replace = Literal["never", "outdated", "always"]
_FULL_TYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class QuantizeSettings:
    """What to make of which model. `output` names the file of a single level; else `directory`.

    covariance: of the inputs, to choose codes with error feedback; without an imatrix it is one,
    and without `refine` nothing else. uncollected: the texts of one that is not there yet, for a
    plan.
    errors: where to write how much each encoding hurts. replace: what may be overwritten:
    nothing, files made from something else, or all.
    """

    source: Path
    levels: tuple[Level, ...]
    directory: Path | None = None
    output: Path | None = None
    imatrix: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    options: QuantizeOptions = QuantizeOptions()
    covariance: Path | None = None
    uncollected: tuple[Path, ...] = ()
    refine: bool = True
    errors: Path | None = None
    threads: int | None = None
    replace: Replace = "never"


@dataclass(frozen=True)
class TargetFile:
    """One file before it is written: a level's only one, or a shard of it."""

    path: Path
    metadata: list[KeyValue]
    specs: list[TensorSpec]

    @property
    def bytes(self) -> int:
        """The file's exact size."""
        return file_size(self.metadata, self.specs)


@dataclass(frozen=True)
class Target:
    """One level's files before they are written. recipe: a hash over all but the weights' bytes."""

    planned: LevelPlan
    files: tuple[TargetFile, ...]
    recipe: str

    @property
    def path(self) -> Path:
        """The file, or the first shard, which stands for all."""
        return self.files[0].path

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Batch:
    """A job that is planned and checked, ready to run or to be shown."""

    settings: QuantizeSettings
    shards: list[Gguf]
    plan: Plan
    weights: dict[str, NDArray[np.float32]]
    targets: list[Target]
    notes: tuple[str, ...]
    feedback: "Feedback | None" = None

    @property
    def elements(self) -> int:
        """The number of weights of the model."""
        return sum(info.n_elements for _, info in self.plan.tensors.values())

    def bits_per_weight(self, target: Target) -> float:
        """Bits that a level spends on a weight, all tensors counted, metadata not."""
        data = sum(spec.nbytes for spec in self.plan.specs(target.planned))
        return round(8 * data / self.elements, 4)


def count_types(planned: LevelPlan) -> dict[str, int]:
    """How many tensors have which type."""
    return dict(Counter(TYPE[kind].name for kind in planned.types.values()))


def options_document(settings: QuantizeSettings) -> dict[str, Any]:
    """The options that differ from the defaults, for the manifest."""
    options = settings.options
    given: dict[str, Any] = {
        "pure": options.pure,
        "tensor_types": [f"{pattern}={TYPE[kind].name}" for pattern, kind in options.tensor_types],
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


def _type_name(kind: int | None) -> str | None:
    return None if kind is None else TYPE[kind].name


def model_name(path: Path) -> str:
    """The model's name from that of its full-precision file: no shard number, no type."""
    stem = model_stem(path)
    for name in _FULL_TYPES:
        for end in (f"-{name}", f".{name}"):
            if stem.upper().endswith(end):
                return stem[: -len(end)]
    return stem


def prepare(settings: QuantizeSettings) -> Batch:
    """Plan a job and check everything that can be checked before the first byte is written."""
    if settings.output is not None and len(settings.levels) != 1:
        raise Usage("-o names one file, but several levels are asked for", "use -d DIR")
    shards = open_model_files(settings.source)
    feedback = _feedback(settings.covariance, shards) if settings.covariance else None
    importance = load_importance(settings.imatrix, settings.include, settings.exclude)
    source = feedback or _planned(settings.uncollected, shards)
    if source is not None:
        own = importance.weights or source.weights
        keys = source.keys if settings.refine else ()
        importance = replace(importance, weights=own, keys=(*importance.keys, *keys))
    plan = make_plan(shards, settings.levels, settings.options, bool(importance.weights))
    tensors = {name: info for name, (_, info) in plan.tensors.items()}
    weights = match_importance(importance, tensors, plan.levels)
    targets = [_target(settings, shards, plan, p, importance) for p in plan.levels]
    notes = missing_entries(weights, tensors, plan.levels) if importance.weights else ()
    notes += foreign_matrix(importance, shards)
    notes += feedback.notes if feedback else ()
    return Batch(settings, shards, plan, weights, targets, notes, feedback)


def _feedback(covariance: Path, shards: list[Gguf]) -> "Feedback":
    # what it needs takes as long to load as all the rest
    from minitron_quant.gptq.refinement import Feedback

    return Feedback(covariance, shards)


def _planned(texts: Sequence[Path], shards: list[Gguf]) -> "PlannedFeedback | None":
    if not texts:
        return None
    from minitron_quant.gptq.estimate import PlannedFeedback

    return PlannedFeedback([text.name for text in texts], shards)


def manifest_path(settings: QuantizeSettings) -> Path:
    return folder_of(settings) / f"{model_name(settings.source)}.manifest.json"


def folder_of(settings: QuantizeSettings) -> Path:
    if settings.output is not None:
        return settings.output.parent
    return settings.directory or settings.source.parent


def _target(
    settings: QuantizeSettings,
    shards: Sequence[Gguf],
    plan: Plan,
    planned: LevelPlan,
    importance: Importance,
) -> Target:
    file_name = f"{model_name(settings.source)}-{planned.level.name}.gguf"
    path = settings.output or folder_of(settings) / file_name
    metadata = level_metadata(shards[0], planned.level, settings.options.overrides, importance.keys)
    files = [TargetFile(path, metadata, plan.specs(planned))]
    if settings.options.keep_split and len(shards) > 1:
        files = _split_like(shards, files[0])
    sources = {shard.path.resolve() for shard in shards}
    if any(file.path.resolve() in sources for file in files):
        raise Usage(f"{path} is the source itself", "choose another folder with -d")
    headers = [encode_header(file.metadata, file.specs) for file in files]
    chosen = (*settings.include, "-", *settings.exclude)
    return Target(planned, tuple(files), fingerprint(*headers, *chosen))


def _split_like(shards: Sequence[Gguf], whole: TargetFile) -> list[TargetFile]:
    """The shards of a level, each with the tensors that the source's shard has."""
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
        files.append(TargetFile(path, metadata, specs))
    return files

"""The plan of a conversion: every key, tensor and size of the output, before any weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minitron_convert.architectures import ModelTensor, SourceModel, read_model
from minitron_convert.checkpoint.folder import open_checkpoint
from minitron_convert.metadata import count_parameters, quantization_version_key, read_general
from minitron_convert.outtypes import OUTTYPES
from minitron_convert.vocab import read_vocabulary, vocabulary_keys
from minitron_core.errors import Damaged, Unsupported
from minitron_core.gguf import (
    BF16,
    F16,
    F32,
    Q8_0,
    TYPE,
    TYPE_ID,
    KeyValue,
    ShardName,
    TensorSpec,
    ValueType,
    file_size,
)
from minitron_core.quoting import quoted

_TYPE_OF_OUTTYPE = {"f32": F32, "f16": F16, "bf16": BF16, "q8_0": Q8_0}
_FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32, "mxfp4": 38}  # llama_ftype
MXFP4 = TYPE_ID["mxfp4"]


@dataclass(frozen=True)
class ConvertSettings:
    """What to convert and how.

    `output` None means {Model}-{OUTTYPE}.gguf in the current folder; a folder, that name in it.
    `name` stands for the folder's name where that says nothing of the model (in the Hub's cache).
    `metadata` is a JSON file of general.* keys; `split_max_size` is in bytes, 0 for one file.
    """

    source: Path
    output: Path | None = None
    outtype: str = "auto"
    metadata: Path | None = None
    vocab_only: bool = False
    split_max_size: int = 0
    dry_run: bool = False
    force: bool = False
    name: str | None = None


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the output and where its values come from."""

    spec: TensorSpec
    source: ModelTensor


@dataclass(frozen=True)
class PlannedFile:
    """One file of the output: a whole model, or a shard of it. `size` is in bytes."""

    path: Path
    metadata: tuple[KeyValue, ...]
    tensors: tuple[PlannedTensor, ...]
    size: int


@dataclass(frozen=True)
class Plan:
    """The output as it will be."""

    model_name: str
    architecture: str
    outtype: str
    files: tuple[PlannedFile, ...]
    notes: tuple[str, ...]

    @property
    def tensors(self) -> list[TensorSpec]:
        """Every tensor, in file order."""
        return [tensor.spec for file in self.files for tensor in file.tensors]

    @property
    def bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files)


def plan(settings: ConvertSettings) -> Plan:
    """Read the checkpoint's headers and say what will be written; no weights are read.

    Errors: NotFound, Denied, Unsupported, Damaged.
    """
    try:
        return _plan(settings)
    except UnicodeEncodeError as error:
        raise Damaged(
            f"the JSON files in {settings.source} hold text that is not Unicode: "
            f"{quoted(error.object, 60)}"
        ) from error


def _plan(settings: ConvertSettings) -> Plan:
    if settings.outtype not in OUTTYPES:
        raise Unsupported(
            f"the converter has no output type {quoted(settings.outtype)}",
            f"known are {', '.join(OUTTYPES)}",
        )
    checkpoint = open_checkpoint(settings.source, vocab_only=settings.vocab_only)
    model = read_model(checkpoint)
    sources = [] if settings.vocab_only else model.tensors()
    outtype = _guess_outtype(model) if settings.outtype == "auto" else settings.outtype
    tensors, notes = _choose_types(sources, _TYPE_OF_OUTTYPE[outtype])
    file_type, ending = _FILE_TYPE[outtype], outtype.upper()
    if outtype != "q8_0" and any(tensor.spec.type == MXFP4 for tensor in tensors):
        file_type, ending = _FILE_TYPE["mxfp4"], "MXFP4_MOE"
    general = read_general(
        settings.source, model.arch, count_parameters(sources), settings.metadata, settings.name
    )
    rules = model.architecture.vocabulary
    vocabulary = read_vocabulary(settings.source, model.size.vocab, rules)
    metadata = [
        general.keys[0],  # general.architecture
        *model.leading_keys(),
        *general.keys[1:],
        *model.hyperparameters(file_type),
        quantization_version_key(),
        *vocabulary_keys(settings.source, checkpoint.config, vocabulary, rules),
    ]
    ending = "vocab" if settings.vocab_only else ending
    output = output_path(settings.output, general.model_name, ending)
    files = split_files(output, metadata, tensors, settings.split_max_size)
    all_notes = (*checkpoint.notes, *model.notes, *vocabulary.notes, *general.notes, *notes)
    return Plan(general.model_name, model.arch, outtype, files, all_notes)


def output_path(output: Path | None, model_name: str, ending: str) -> Path:
    """The file asked for; {Model}-{ENDING}.gguf in the folder asked for, or in the current one."""
    name = f"{model_name}-{ending}.gguf"
    if output is None:
        return Path(name)
    return output / name if output.is_dir() else output


def _guess_outtype(model: SourceModel) -> str:
    """The type in which the first matrix is stored, if it is a 16-bit one; else f16."""
    for tensor in model.checkpoint.tensors.values():
        if len(tensor.shape) > 1 and tensor.dtype in ("BF16", "F16"):
            return tensor.dtype.lower()
    return "f16"


def _choose_types(
    sources: Sequence[ModelTensor], wanted: int
) -> tuple[list[PlannedTensor], list[str]]:
    tensors, notes = [], []
    for source in sources:
        kind = wanted
        vector = len(source.shape) <= 1 or source.name.endswith("_norm.weight")
        if source.dtype == "MXFP4":
            kind = MXFP4
        elif vector or source.full_precision or not source.name.endswith(".weight"):
            kind = F32
        elif source.shape[-1] % TYPE[kind].block_elements:
            kind = F16
            notes.append(f"{source.name} stays f16: its rows do not fit blocks of {TYPE[wanted]}")
        tensors.append(PlannedTensor(TensorSpec(source.name, source.shape[::-1], kind), source))
    return tensors, notes


def split_files(
    output: Path, metadata: Sequence[KeyValue], tensors: Sequence[PlannedTensor], limit: int
) -> tuple[PlannedFile, ...]:
    """One file, or shards whose tensors take at most `limit` bytes (one tensor may take more)."""
    groups: list[list[PlannedTensor]] = [[]]
    used = 0
    for tensor in tensors:
        if limit and groups[-1] and used + tensor.spec.nbytes > limit:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += tensor.spec.nbytes
    if len(groups) == 1:
        return (_planned_file(output, metadata, groups[0]),)
    stem, count = output.name.removesuffix(".gguf"), len(groups)
    return tuple(
        _planned_file(
            output.with_name(str(ShardName(stem, i + 1, count))),
            [*(metadata if i == 0 else []), *_split_keys(i, count, len(tensors))],
            group,
        )
        for i, group in enumerate(groups)
    )


def _split_keys(number: int, count: int, tensors: int) -> list[KeyValue]:
    return [
        KeyValue.of("split.no", ValueType.UINT16, number),
        KeyValue.of("split.count", ValueType.UINT16, count),
        KeyValue.of("split.tensors.count", ValueType.INT32, tensors),
    ]


def _planned_file(
    path: Path, metadata: Sequence[KeyValue], tensors: list[PlannedTensor]
) -> PlannedFile:
    size = file_size(metadata, [tensor.spec for tensor in tensors])
    return PlannedFile(path, tuple(metadata), tuple(tensors), size)

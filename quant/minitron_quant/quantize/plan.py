"""The plan: the type of each tensor at each level, as llama.cpp's own dry run decides it.

The rules of the mixes stay in llama.cpp; this module parses and checks its answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minitron_core.errors import ImatrixNeeded, MinitronError, Unsupported
from minitron_core.gguf import TYPE, TYPE_ID, Gguf, KeyValue, TensorInfo, TensorSpec, ValueType
from minitron_quant.levels import Level
from minitron_quant.model_files import EMBEDDING, OUTPUT, Tensors, tensors_of
from minitron_quant.quantize.dry_run import dry_runs
from minitron_quant.quantize.fallbacks import Fallback, read_fallbacks
from minitron_quant.quantize.options import ENCODABLE, QuantizeOptions, check_patterns
from minitron_quant.quantize.recipe import Recipe

_LINE = re.compile(
    r"\[ *\d+/ *\d+\] (?P<name>.+?) +- \[[^]]*\], type = +(?P<old>\w+), "
    r"size = .*?(?:\((?P<new>\w+)\))?$"
)
_NEEDS_IMATRIX = "will require an imatrix"

# tensor_requires_imatrix of src/llama-quant.cpp, for weights that an imatrix lacks
_TYPES_NEEDING_IMATRIX = frozenset(
    TYPE_ID[name] for name in ("iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s")
)
# ggml_quantize_requires_imatrix: these encoders abort without one, whatever the tensor
_ENCODERS_NEEDING_IMATRIX = frozenset(TYPE_ID[name] for name in ("iq2_xxs", "iq2_xs", "iq1_s"))

_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class LevelPlan:
    """One level's file: the type of every tensor, in the order of the file, and other ones' why."""

    level: Level
    types: dict[str, int]
    fallbacks: tuple[Fallback, ...] = ()


@dataclass(frozen=True)
class TypePlan:
    """What to encode: the source's tensors by name, and each level's types for them."""

    tensors: Tensors
    levels: tuple[LevelPlan, ...]

    @property
    def order(self) -> list[str]:
        """The names of the tensors in the order of every file."""
        return list(self.levels[0].types)

    def specs(self, planned: LevelPlan) -> list[TensorSpec]:
        """The tensors of one level's file or shards, in order."""
        return [
            TensorSpec(name, self.tensors[name][1].shape, ggml_type)
            for name, ggml_type in planned.types.items()
        ]


def requires_imatrix(name: str, ggml_type: int, level: Level) -> bool:
    """Whether llama.cpp refuses to encode this tensor without an importance matrix."""
    if ggml_type in _ENCODERS_NEEDING_IMATRIX:
        return True
    if name in (EMBEDDING, OUTPUT):
        return False
    return ggml_type in _TYPES_NEEDING_IMATRIX or (
        ggml_type == TYPE_ID["q2_K"] and level.name == "Q2_K_S"
    )


def make_plan(
    shards: Sequence[Gguf], levels: Sequence[Level], options: QuantizeOptions, imatrix: bool
) -> TypePlan:
    """Ask llama.cpp for the types of every level, and check that they can be encoded.

    Raises ImatrixNeeded, Unsupported (a type that does not fit a row, a quantized source).
    """
    tensors = tensors_of(shards)
    check_patterns([pattern for pattern, _ in options.tensor_types], [*tensors], "--tensor-type")
    _check_requested(tensors, options)
    requests = [(level.ftype, _options_for(level, options)) for level in levels]
    answers = dry_runs(shards[0].path, requests, imatrix)
    planned = []
    for level, lines in zip(levels, answers, strict=True):
        types = _parse(lines, tensors)
        if isinstance(level, Recipe):
            _check_recipe(level, types)
        if not imatrix and any(_NEEDS_IMATRIX in line for line in lines):
            _refuse_without_imatrix(level)
        for name, ggml_type in types.items():
            check_type(tensors[name][1], ggml_type, options, level)
        planned.append(LevelPlan(level, types, _fallbacks(level, types, tensors, options, lines)))
    return TypePlan(tensors, tuple(planned))


def _fallbacks(
    level: Level,
    types: dict[str, int],
    tensors: Tensors,
    options: QuantizeOptions,
    lines: list[str],
) -> tuple[Fallback, ...]:
    output = OUTPUT if OUTPUT in tensors else EMBEDDING
    chosen = isinstance(level, Recipe) or options.pure or options.output_type is not None
    free = not chosen and types.get(output) == TYPE_ID["q8_0"]
    return read_fallbacks(lines, tensors[output][1] if free else None, level.name)


def _options_for(level: Level, options: QuantizeOptions) -> QuantizeOptions:
    # a recipe names the types of all tensors that have a choice
    if not isinstance(level, Recipe):
        return options
    return QuantizeOptions(
        tensor_types=level.patterns,
        allow_requantize=options.allow_requantize,
        keep_split=options.keep_split,
    )


def _check_recipe(recipe: Recipe, types: dict[str, int]) -> None:
    for name, ggml_type in recipe.types:
        if types.get(name) != ggml_type:
            given = TYPE[types[name]].name if name in types else "no such tensor"
            raise Unsupported(
                f"{recipe.name} wants {TYPE[ggml_type].name} for {name}; llama.cpp gives {given}"
            )


def _refuse_without_imatrix(level: Level) -> None:
    raise ImatrixNeeded(
        f"{level.name} needs an importance matrix",
        "-f TEXT collects one first; --imatrix FILE uses one that minitron imatrix wrote",
    )


def check_type(info: TensorInfo, ggml_type: int, options: QuantizeOptions, level: Level) -> None:
    """Refuse a type that llama.cpp would abort on, and a quantized source without permission."""
    if ggml_type == info.type:
        return
    _check_rows(info, ggml_type)
    if TYPE[info.type].block_elements > 1 and not options.allow_requantize:
        raise Unsupported(
            f"{level.name}: {info.name} is already quantized to {TYPE[info.type].name}",
            "start from an F16, BF16 or F32 file, or pass --allow-requantize and lose quality",
        )


def _check_rows(info: TensorInfo, ggml_type: int) -> None:
    if ggml_type not in ENCODABLE or info.shape[0] % TYPE[ggml_type].block_elements:
        raise Unsupported(
            f"{info.name} has rows of {info.shape[0]}, which {TYPE[ggml_type].name} cannot hold",
            "choose another type for it with --tensor-type",
        )


def _check_requested(tensors: Tensors, options: QuantizeOptions) -> None:
    """Refuse a --tensor-type that rows do not allow: llama.cpp silently takes another."""
    for name, (_, info) in tensors.items():
        ggml_types = (
            ggml_type for pattern, ggml_type in options.tensor_types if re.search(pattern, name)
        )
        requested = next(ggml_types, None)
        if requested is not None and len(info.shape) > 1:
            _check_rows(info, requested)


def _parse(lines: list[str], tensors: Tensors) -> dict[str, int]:
    types = {}
    for line in lines:
        match = _LINE.fullmatch(line.rstrip())
        if match:
            types[match["name"]] = TYPE_ID[match["new"] or match["old"]]
    if types.keys() != tensors.keys():
        raise MinitronError(
            f"llama.cpp planned {len(types)} of {len(tensors)} tensors",
            "is the model complete? minitron inspect shows its tensors",
        )
    return types


def level_metadata(
    source: Gguf, level: Level, overrides: Sequence[KeyValue], imatrix: Sequence[KeyValue]
) -> list[KeyValue]:
    """The metadata of a level's file, in the order in which llama_model_quantize writes it.

    The source's keys without those of its shards; keys that are set again move to the end.
    """
    added = [
        KeyValue.of("general.quantization_version", ValueType.UINT32, 2),
        KeyValue.of("general.file_type", ValueType.UINT32, level.ftype),
        *overrides,
        *imatrix,
        *(level.keys if isinstance(level, Recipe) else ()),
    ]
    metadata = {key: entry for key, entry in source.metadata.items() if key not in _SPLIT_KEYS}
    for entry in added:
        metadata.pop(entry.key, None)
        metadata[entry.key] = entry
    return list(metadata.values())


def split_metadata(number: int, count: int, tensors: int) -> list[KeyValue]:
    """The metadata of shard `number` (from 0) of `count`."""
    values = ((ValueType.UINT16, number), (ValueType.UINT16, count), (ValueType.INT32, tensors))
    return [
        KeyValue.of(key, value_type, value)
        for key, (value_type, value) in zip(_SPLIT_KEYS, values, strict=True)
    ]

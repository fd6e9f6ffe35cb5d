"""The importance matrix of a quantization: select entries, match them with the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minitron_core.errors import Damaged, ImatrixNeeded, Usage
from minitron_core.gguf import TYPE, Gguf, KeyValue, TensorInfo, ValueType
from minitron_core.hashing import model_fingerprint
from minitron_core.quoting import quoted
from minitron_quant.array_backend import Floats
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.model_files import EMBEDDING, tensors_of
from minitron_quant.provenance import CalibrationOrigin
from minitron_quant.quantize.plan import LevelPlan, requires_imatrix

_MAX_TEXT = 127  # llama-quantize cuts what it documents at this many bytes


@dataclass(frozen=True)
class Importance:
    """Weights by tensor name, [matrices, columns] float32, and the metadata keys about them.

    origin: what the matrix was made from, if its file records it.
    """

    weights: Mapping[str, Floats]
    keys: tuple[KeyValue, ...]
    origin: CalibrationOrigin | None = None


@dataclass(frozen=True)
class PlainCodes:
    """A prepare.CodeRefiner that leaves ggml's codes: importance and metadata only."""

    weights: Mapping[str, Floats]
    keys: tuple[KeyValue, ...] = ()
    notes: tuple[str, ...] = ()
    file: Path | None = None
    warning: str = ""
    rows: int = 1

    def of(self, _name: str) -> None:
        """No tensor is refined."""


def weights_of_ones(shards: Sequence[Gguf], *others: str) -> dict[str, Floats]:
    """[matrices, columns] of ones for the matrices of the layers, and for `others`."""
    return {
        name: np.ones((info.shape[2] if len(info.shape) > 2 else 1, info.shape[0]), np.float32)
        for name, (_, info) in tensors_of(shards).items()
        if len(info.shape) >= 2
        and (name in others or (name.startswith("blk.") and name.endswith(".weight")))
    }


def expected_importance(shards: Sequence[Gguf], name: str, text: Path) -> PlainCodes:
    """What a matrix that imatrix writes as `name` will bring to a model's files.

    Metadata has its final size. Weights are ones.
    """
    weights = weights_of_ones(shards)
    return PlainCodes(weights, _keys(name, [str(text)], len(weights), 1))


def load_importance(
    path: Path | None, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Importance:
    """Read a file and select its entries; without a path there are none.

    include, exclude: parts of names; Usage for one that matches no entry.
    """
    if path is None:
        if include or exclude:
            raise Usage("--include-weights and --exclude-weights need --imatrix")
        return Importance({}, ())
    if include and exclude:
        raise Usage("--include-weights and --exclude-weights exclude each other")
    matrix = read_imatrix(path)
    weights = matrix.weights()
    for part in (*include, *exclude):
        if not any(part in name for name in weights):
            raise Usage(
                f"no entry of {path.name} has {quoted(part)} in its name",
                f"its entries have names like {next(iter(weights))}",
            )
    if include:
        weights = {name: w for name, w in weights.items() if any(part in name for part in include)}
    weights = {name: w for name, w in weights.items() if not any(part in name for part in exclude)}
    keys = _keys(path.name, matrix.datasets, len(weights), matrix.chunk_count)
    return Importance(weights, keys if weights else (), matrix.origin)


def _keys(name: str, datasets: Sequence[str], entries: int, chunks: int) -> tuple[KeyValue, ...]:
    texts = {"quantize.imatrix.file": name}
    if datasets:
        texts["quantize.imatrix.dataset"] = datasets[0]
    counts = {"quantize.imatrix.entries_count": entries}
    if chunks > 0:
        counts["quantize.imatrix.chunks_count"] = chunks
    # names may not be Unicode: keep their bytes
    return (
        *(
            KeyValue.of(key, ValueType.STRING, text.encode(errors="surrogateescape")[:_MAX_TEXT])
            for key, text in texts.items()
        ),
        *(KeyValue.of(key, ValueType.UINT32, count) for key, count in counts.items()),
    )


def match_importance(
    importance: Importance, tensors: Mapping[str, TensorInfo], levels: Sequence[LevelPlan]
) -> dict[str, Floats]:
    """The weights of the model's tensors, [matrices, columns].

    Raises Damaged for an entry of another size, ImatrixNeeded for a tensor that needs one.
    """
    matched = {}
    for name, weights in importance.weights.items():
        info = tensors.get(name)
        if info is None:
            continue
        size = info.shape[0] * (info.shape[2] if len(info.shape) > 2 else 1)
        if weights.size == size:
            matched[name] = np.ascontiguousarray(weights.reshape(-1, info.shape[0]))
        elif name != EMBEDDING:  # llama.cpp ignores what does not fit the embedding
            raise Damaged(
                f"the importance matrix has {weights.size} values for {name}, the model {size}",
                "it was made for another model",
            )
    if importance.weights and not matched:
        raise Damaged(
            "no entry of the importance matrix belongs to a tensor of this model",
            "it was made for another model",
        )
    _check_presence(matched, tensors, levels)
    return matched


def foreign_matrix(importance: Importance, shards: Sequence[Gguf]) -> tuple[str, ...]:
    """A note if the matrix was made on another model of the same sizes."""
    if importance.origin is None or importance.origin.model == model_fingerprint(shards):
        return ()
    return ("the importance matrix was made on another model than this one",)


def missing_entries(
    matched: Mapping[str, object],
    tensors: Mapping[str, TensorInfo],
    levels: Sequence[LevelPlan],
    source: str = "importance matrix",
) -> tuple[str, ...]:
    """A note that names the tensors of the layers that have no entry in `source`."""
    names = [
        name
        for name, info in tensors.items()
        if name not in matched
        and name.startswith("blk.")
        and any(planned.types[name] != info.type for planned in levels)
    ]
    if not names:
        return ()
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (f"the {source} has no entry for {shown}: encoded without importance",)


def _check_presence(
    matched: Mapping[str, object], tensors: Mapping[str, TensorInfo], levels: Sequence[LevelPlan]
) -> None:
    for planned in levels:
        lacking = [
            (name, ggml_type)
            for name, ggml_type in planned.types.items()
            if name not in matched
            and ggml_type != tensors[name].type
            and requires_imatrix(name, ggml_type, planned.level)
        ]
        if lacking:
            name, ggml_type = lacking[0]
            more = f" and {len(lacking) - 1} more tensors" if len(lacking) > 1 else ""
            raise ImatrixNeeded(
                f"{planned.level.name} encodes {name}{more} to {TYPE[ggml_type].name}, "
                "which needs an importance matrix entry that is missing",
                "-f TEXT collects one first; --imatrix FILE uses one that minitron imatrix wrote",
            )

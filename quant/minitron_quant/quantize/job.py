"""A quantization job before it runs: what is asked for, planned and checked."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minitron_convert.gguf_file import (
    SHARD_NAME,
    TYPE,
    Gguf,
    KeyValue,
    encode_header,
    file_size,
    open_shards,
)
from minitron_engine.errors import Usage
from minitron_engine.library import LLAMA_CPP_COMMIT
from minitron_quant.levels import Level
from minitron_quant.quantize.importance import Importance, load_importance, match_importance
from minitron_quant.quantize.journal import file_sha256, fingerprint, read_manifest
from minitron_quant.quantize.options import QuantizeOptions
from minitron_quant.quantize.plan import LevelPlan, Plan, level_metadata, make_plan

Replace = Literal["never", "outdated", "always"]
_FULL_TYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True)
class QuantizeSettings:
    """What to make of which model. `output` names the file of a single level; else `directory`.

    replace: what may be overwritten: nothing, files made from something else, or all.
    """

    source: Path
    levels: tuple[Level, ...]
    directory: Path | None = None
    output: Path | None = None
    imatrix: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    options: QuantizeOptions = QuantizeOptions()
    threads: int | None = None
    replace: Replace = "never"


@dataclass(frozen=True)
class Target:
    """One level's file before it is written."""

    planned: LevelPlan
    path: Path
    metadata: list[KeyValue]
    bytes: int
    fingerprint: str


@dataclass(frozen=True)
class Batch:
    """A job that is planned and checked, ready to run or to be shown."""

    settings: QuantizeSettings
    shards: list[Gguf]
    plan: Plan
    weights: dict[str, NDArray[np.float32]]
    targets: list[Target]
    identity: dict[str, Any]

    @property
    def elements(self) -> int:
        """The number of weights of the model."""
        return sum(info.n_elements for _, info in self.plan.tensors.values())

    def bits_per_weight(self, target: Target) -> float:
        """Bits that a level spends on a weight, all tensors counted, metadata not."""
        data = sum(spec.nbytes for spec in self.plan.specs(target.planned))
        return round(8 * data / self.elements, 4)

    def summary(self) -> dict[str, Any]:
        """The plan for people and programs: sizes in bytes, work in weights to encode."""
        pairs = {
            (name, kind)
            for target in self.targets
            for name, kind in target.planned.types.items()
            if kind != self.plan.tensors[name][1].type
        }
        encoded = sum(self.plan.tensors[name][1].n_elements for name, _ in pairs)
        separate = sum(
            self.plan.tensors[name][1].n_elements
            for target in self.targets
            for name, kind in target.planned.types.items()
            if (name, kind) in pairs
        )
        return {
            "levels": [
                {
                    "level": target.planned.level.name,
                    "path": str(target.path),
                    "bytes": target.bytes,
                    "bits_per_weight": self.bits_per_weight(target),
                    "types": count_types(target.planned),
                }
                for target in self.targets
            ],
            "bytes": sum(target.bytes for target in self.targets),
            "free_bytes": _free_bytes(folder_of(self.settings)),
            "pairs": len(pairs),
            "weights_encoded": encoded,
            "weights_without_sharing": separate,
            "work_saved_pct": round(100 * (1 - encoded / separate), 2) if separate else 0.0,
        }


def count_types(planned: LevelPlan) -> dict[str, int]:
    """How many tensors have which type."""
    return dict(Counter(TYPE[kind].name for kind in planned.types.values()))


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def model_name(path: Path) -> str:
    """The model's name from that of its full-precision file: no shard number, no type."""
    shard = SHARD_NAME.fullmatch(path.name)
    stem = shard["stem"] if shard else path.name.removesuffix(".gguf")
    for name in _FULL_TYPES:
        for end in (f"-{name}", f".{name}"):
            if stem.upper().endswith(end):
                return stem[: -len(end)]
    return stem


def prepare(settings: QuantizeSettings) -> Batch:
    """Plan a job and check everything that can be checked before the first byte is written."""
    if settings.output is not None and len(settings.levels) != 1:
        raise Usage("-o names one file, but several levels are asked for", "use -d DIR")
    shards = open_shards(settings.source)
    importance = load_importance(settings.imatrix, settings.include, settings.exclude)
    plan = make_plan(shards, settings.levels, settings.options, bool(importance.weights))
    tensors = {name: info for name, (_, info) in plan.tensors.items()}
    weights = match_importance(importance, tensors, plan.levels)
    identity = _identity(settings, shards)
    targets = [_target(settings, shards[0], plan, p, importance, identity) for p in plan.levels]
    return Batch(settings, shards, plan, weights, targets, identity)


def manifest_path(settings: QuantizeSettings) -> Path:
    return folder_of(settings) / f"{model_name(settings.source)}.manifest.json"


def folder_of(settings: QuantizeSettings) -> Path:
    if settings.output is not None:
        return settings.output.parent
    return settings.directory or settings.source.parent


def _identity(settings: QuantizeSettings, shards: Sequence[Gguf]) -> dict[str, Any]:
    # a file of the same size and time as recorded is not read again only to hash it
    recorded = read_manifest(manifest_path(settings)).get("source", [])
    known = {(e["name"], e["bytes"], e["modified_ns"]): e["sha256"] for e in recorded}
    source = []
    for shard in shards:
        stat = shard.path.stat()
        key = (shard.path.name, stat.st_size, stat.st_mtime_ns)
        sha256 = known.get(key) or file_sha256(shard.path)
        source.append(dict(zip(("name", "bytes", "modified_ns"), key, strict=True), sha256=sha256))
    imatrix = settings.imatrix
    return {
        "source": source,
        "imatrix": imatrix and {"name": imatrix.name, "sha256": file_sha256(imatrix)},
        "llama_cpp_commit": LLAMA_CPP_COMMIT,
    }


def _target(
    settings: QuantizeSettings,
    source: Gguf,
    plan: Plan,
    planned: LevelPlan,
    importance: Importance,
    identity: dict[str, Any],
) -> Target:
    file_name = f"{model_name(settings.source)}-{planned.level.name}.gguf"
    path = settings.output or folder_of(settings) / file_name
    if path.resolve() in {shard.path.resolve() for shard, _ in plan.tensors.values()}:
        raise Usage(f"{path} is the source itself", "choose another folder with -d")
    metadata = level_metadata(source, planned.level, settings.options.overrides, importance.keys)
    specs = plan.specs(planned)
    hashes = [entry["sha256"] for entry in identity["source"]]
    weights = identity["imatrix"]["sha256"] if importance.weights else ""
    made_from = fingerprint(
        encode_header(metadata, specs), *hashes, weights, *settings.include, "-", *settings.exclude
    )
    return Target(planned, path, metadata, file_size(metadata, specs), made_from)

"""What a job will write and cost, before it runs."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from minitron_convert.gguf_file import row_bytes
from minitron_engine.devices import default_threads
from minitron_engine.library import ggml
from minitron_quant.quantize.job import Batch, count_types, folder_of

# weights encoded to find out how fast a type is; whole blocks of every type
_SAMPLE_ROWS, _SAMPLE_COLUMNS = 64, 256


def summarize(batch: Batch) -> dict[str, Any]:
    """Sizes in bytes (exact), work in weights to encode, time in seconds (an estimate)."""
    tensors = batch.plan.tensors
    wanted = [
        (name, kind)
        for target in batch.targets
        for name, kind in target.planned.types.items()
        if kind != tensors[name][1].type
    ]
    pairs = set(wanted)
    separate = sum(tensors[name][1].n_elements for name, _ in wanted)
    by_type: dict[int, int] = {}
    for name, kind in pairs:
        by_type[kind] = by_type.get(kind, 0) + tensors[name][1].n_elements
    encoded = sum(by_type.values())
    threads = batch.settings.threads or default_threads()
    return {
        "levels": [
            {
                "level": target.planned.level.name,
                "path": str(target.path),
                "bytes": target.bytes,
                "bits_per_weight": batch.bits_per_weight(target),
                "types": count_types(target.planned),
            }
            for target in batch.targets
        ],
        "bytes": sum(target.bytes for target in batch.targets),
        "free_bytes": _free_bytes(folder_of(batch.settings)),
        "pairs": len(pairs),
        "weights_encoded": encoded,
        "weights_without_sharing": separate,
        "work_saved_pct": round(100 * (1 - encoded / separate), 2) if separate else 0.0,
        "estimated_seconds": round(
            sum(count / encoding_speed(kind) for kind, count in by_type.items()) / threads, 1
        ),
    }


def encoding_speed(kind: int) -> float:
    """Weights per second and thread of ggml's encoder for a type, measured on a small sample."""
    values = np.random.default_rng(0).standard_normal(_SAMPLE_ROWS * _SAMPLE_COLUMNS, np.float32)
    weights = np.ones(_SAMPLE_COLUMNS, np.float32)
    blocks = np.empty(_SAMPLE_ROWS * row_bytes(kind, _SAMPLE_COLUMNS), np.uint8)

    def encode(rows: int) -> None:
        ggml().ggml_quantize_chunk(
            kind,
            values.ctypes.data,
            blocks.ctypes.data,
            0,
            rows,
            _SAMPLE_COLUMNS,
            weights.ctypes.data,
        )

    encode(1)  # the first call builds the tables of the type
    started = time.perf_counter()
    encode(_SAMPLE_ROWS)
    return values.size / (time.perf_counter() - started)


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free

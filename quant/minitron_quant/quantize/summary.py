"""What a quantization will write and cost, before it runs."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from minitron_core.cpu_limits import default_threads
from minitron_core.gguf import TYPE, TYPE_ID
from minitron_core.kernels import kernels
from minitron_quant.blocks import encode_blocks
from minitron_quant.quantize.plan import TypePlan
from minitron_quant.quantize.prepare import QuantizeJob, count_types, folder_of

# weights to encode to measure the speed of this machine
_SAMPLE_ROWS, _SAMPLE_COLUMNS = 64, 4096

# speed of each encoder relative to q6_K, as benchmarks/encoding_speed.py prints it (an EPYC with
# AVX-512). Measuring all of them takes too long for a plan: the tables of the IQ types alone are
# seconds of work.
RELATIVE_SPEED = {
    "iq2_xs": 0.037,
    "iq3_xxs": 0.0613,
    "iq2_xxs": 0.0741,
    "iq3_s": 0.0873,
    "iq2_s": 0.131,
    "iq4_xs": 0.159,
    "iq4_nl": 0.159,
    "iq1_s": 0.189,
    "iq1_m": 0.202,
    "q2_K": 0.225,
    "q5_K": 0.249,
    "q4_K": 0.256,
    "q5_1": 0.261,
    "q4_1": 0.262,
    "q3_K": 0.805,
    "q6_K": 1.0,
    "q5_0": 1.12,
    "q4_0": 1.12,
    "nvfp4": 1.16,
    "q1_0": 5.5,
    "mxfp4": 6.36,
    "q2_0": 8.6,
    "q8_0": 8.9,
    "tq2_0": 9.5,
    "tq1_0": 9.74,
    "f16": 17.3,
    "bf16": 80.6,
    "f32": 256.0,
}

# the same with the kernels in use (minitron_quant.kernels), beside their q6_K
KERNEL_SPEED = {
    "iq1_m": 0.0935,
    "iq3_xxs": 0.0703,
    "iq3_s": 0.0773,
    "iq2_xs": 0.0816,
    "iq2_xxs": 0.0863,
    "iq2_s": 0.102,
    "iq1_s": 0.125,
    "nvfp4": 0.165,
    "q2_K": 0.325,
    "iq4_xs": 0.341,
    "q5_K": 0.351,
    "q4_K": 0.363,
    "q5_1": 0.403,
    "q4_1": 0.408,
    "iq4_nl": 0.457,
    "q1_0": 0.698,
    "mxfp4": 0.707,
    "q3_K": 0.806,
    "q2_0": 0.831,
    "q6_K": 1.0,
    "q5_0": 1.12,
    "q4_0": 1.14,
    "tq2_0": 1.45,
    "tq1_0": 1.49,
    "f16": 2.64,
    "bf16": 11.5,
    "q8_0": 13.2,
    "f32": 30.7,
}


def summarize(job: QuantizeJob, more_seconds: float = 0.0) -> dict[str, Any]:
    """Sizes in bytes (exact), work in weights to encode, time in seconds (an estimate).

    more_seconds: what calibration and GPTQ take besides ggml's encoders.
    """
    seconds = estimate_seconds(job.plan, job.settings.threads) + more_seconds
    tensors = job.plan.tensors
    chosen = [
        (name, ggml_type)
        for output in job.outputs
        for name, ggml_type in output.planned.types.items()
        if ggml_type != tensors[name][1].type
    ]
    pairs = set(chosen)
    separate = sum(tensors[name][1].n_elements for name, _ in chosen)
    encoded = sum(tensors[name][1].n_elements for name, _ in pairs)
    return {
        "levels": [
            {
                "level": output.name,
                "path": str(output.path),
                "bytes": output.bytes,
                "bpw": job.bits_per_weight(output),
                "types": count_types(output.planned),
                "fallbacks": [asdict(fallback) for fallback in output.planned.fallbacks],
            }
            for output in job.outputs
        ],
        "bytes": sum(output.bytes for output in job.outputs),
        "free_bytes": free_bytes(folder_of(job.settings)),
        "pairs": len(pairs),
        "weights_encoded": encoded,
        "weights_without_sharing": separate,
        "work_saved_pct": round(100 * (1 - encoded / separate), 2) if separate else 0.0,
        "estimated_seconds": round(seconds, 1),
    }


def estimate_seconds(plan: TypePlan, threads: int | None = None) -> float:
    """Seconds that this machine takes to encode every distinct tensor and type of a plan."""
    pairs = {pair for planned in plan.levels for pair in planned.types.items()}
    infos = {name: info for name, (_, info) in plan.tensors.items()}
    speeds = KERNEL_SPEED if kernels().library else RELATIVE_SPEED
    units = sum(
        infos[name].n_elements / speeds[TYPE[ggml_type].name]
        for name, ggml_type in pairs
        if ggml_type != infos[name].type
    )
    return units / (machine_speed() * (threads or default_threads()))


def machine_speed() -> float:
    """Weights per second that one thread encodes to q6_K, measured in milliseconds."""
    ggml_type, columns = TYPE_ID["q6_K"], _SAMPLE_COLUMNS
    values = np.random.default_rng(0).standard_normal((_SAMPLE_ROWS, columns), np.float32)
    weights = np.ones(columns, np.float32)
    encode_blocks(ggml_type, values[:1], weights)  # the cost of the first use of a type
    # the thread's own time, whatever else the machine does
    started = time.thread_time()
    encode_blocks(ggml_type, values, weights)
    return values.size / (time.thread_time() - started)


def free_bytes(folder: Path) -> int:
    """The free bytes of the disk where `folder` is, or will be."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free

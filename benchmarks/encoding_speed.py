"""How fast the encoders are: million weights per second on one core, for every type, beside ggml's.

    python benchmarks/encoding_speed.py

On normally distributed weights, with an importance matrix and without. Short slices of ggml and of
the kernels of this machine alternate, in the thread's own CPU time; speeds and ratios are medians
over the rounds, with quartiles of the ratios of pairs. The columns "relative" are what
minitron_quant.quantize.summary has as RELATIVE_SPEED and KERNEL_SPEED, with q6_K as 1.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from harness import machine
from numpy.typing import NDArray

from minitron_core.gguf import TYPE, TYPE_ID, row_bytes
from minitron_core.kernels import kernels
from minitron_quant.kernels.encode import KERNEL_TYPES, quantize_rows
from minitron_quant.kernels.self_check import NEEDS_IMPORTANCE, encode_by_ggml
from minitron_quant.quantize.options import ENCODABLE

ROWS, COLUMNS = 32, 4096
Values = NDArray[np.float32]
Encode = Callable[[int, Values, NDArray[np.uint8], Values | None], None]


@dataclass(frozen=True)
class Speed:
    """Weights per second and core of ggml and of the kernels, and quartiles of their ratios."""

    ggml: float
    kernels: float
    ratios: list[float]


def speed(kind: int, with_importance: bool, rounds: int) -> Speed:
    """Both encoders in turn; where ggml is slow it encodes fewer rows of the same matrix."""
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    weights = (
        np.random.default_rng(1).random(COLUMNS, dtype=np.float32) if with_importance else None
    )
    blocks = np.empty(ROWS * row_bytes(kind, COLUMNS), np.uint8)
    few = values[:4] if kind in KERNEL_TYPES else values
    measured: list[tuple[float, float]] = []
    for _ in range(rounds + 1):  # the first call builds the tables of the type
        pair = (
            _timed(encode_by_ggml, kind, few, blocks, weights),
            _timed(quantize_rows, kind, values, blocks, weights),
        )
        measured.append(pair)
    ggml, ours = zip(*measured[1:], strict=True)
    ratios = [one / other for one, other in zip(ours, ggml, strict=True)]
    return Speed(
        statistics.median(ggml), statistics.median(ours), statistics.quantiles(ratios, n=4)
    )


def _timed(
    encode: Encode, kind: int, values: Values, blocks: NDArray[np.uint8], weights: Values | None
) -> float:
    started = time.thread_time_ns()
    encode(kind, values, blocks, weights)
    return values.size / (time.thread_time_ns() - started) * 1e9


def main() -> None:
    """Print what the machine is and a Markdown table, slowest of ggml first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    for name, value in {**machine(), "encoders": kernels()}.items():
        print(f"- {name}: {value}")
    speeds = {
        (TYPE[kind].name, weighted): speed(kind, weighted, rounds)
        for kind in ENCODABLE
        for weighted in (True, False)
        if weighted or TYPE[kind].name not in NEEDS_IMPORTANCE
    }
    whole = speeds[TYPE[TYPE_ID["q6_K"]].name, True]
    print(
        "\n| type | importance | ggml Mw/s/core | minitron Mw/s/core | ratio (quartiles) "
        "| relative, ggml | relative, minitron |\n|---|---|---:|---:|---:|---:|---:|"
    )
    for (name, weighted), one in sorted(speeds.items(), key=lambda item: item[1].ggml):
        low, middle, high = one.ratios
        print(
            f"| {name} | {'yes' if weighted else 'no'} | {one.ggml / 1e6:.2f} "
            f"| {one.kernels / 1e6:.2f} | {middle:.2f} ({low:.2f} to {high:.2f}) "
            f"| {one.ggml / whole.ggml:.3g} | {one.kernels / whole.kernels:.3g} |"
        )


if __name__ == "__main__":
    main()

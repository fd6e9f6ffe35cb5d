"""How fast ggml's encoders are: million weights per second on one core, for every type.

    python benchmarks/encoding_speed.py

With an importance matrix, on normally distributed weights, best of three. The column "relative" is
what minitron_quant.quantize.summary has as RELATIVE_SPEED, with q6_K as 1.
"""

import time

import numpy as np

from minitron_core.gguf import TYPE, TYPE_ID, row_bytes
from minitron_engine.llama.library import ggml
from minitron_quant.quantize.options import ENCODABLE

ROWS, COLUMNS = 64, 4096


def speed(kind: int) -> float:
    """Weights per second and core."""
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    weights = np.random.default_rng(1).random(COLUMNS, dtype=np.float32)
    blocks = np.empty(ROWS * row_bytes(kind, COLUMNS), np.uint8)
    best = 0.0
    for rows in (1, ROWS, ROWS, ROWS):  # the first call builds the tables of the type
        started = time.perf_counter()
        pointers = values.ctypes.data, blocks.ctypes.data
        ggml().ggml_quantize_chunk(kind, *pointers, 0, rows, COLUMNS, weights.ctypes.data)
        best = max(best, rows * COLUMNS / (time.perf_counter() - started))
    return best


def main() -> None:
    """Print a Markdown table, slowest first."""
    speeds = {TYPE[kind].name: speed(kind) for kind in ENCODABLE}
    print("| type | million weights / s / core | relative |\n|---|---:|---:|")
    for name, value in sorted(speeds.items(), key=lambda item: item[1]):
        print(f"| {name} | {value / 1e6:.2f} | {value / speeds[TYPE[TYPE_ID['q6_K']].name]:.3g} |")


if __name__ == "__main__":
    main()

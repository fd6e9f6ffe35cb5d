"""Time GPTQ on one layer of Llama-3.1-Minitron-4B-Width's shape, and try block widths.

    python benchmarks/gptq_width.py --type q3_K --type iq2_xs --numpy
    python benchmarks/gptq_width.py --covariance nano.covariance.gguf --model nano-F16.gguf

Weights and covariances of the layer are random: their values decide no time. --numpy: once more
with numpy's loops and the same encoders. Block widths are
tried on a real model: codes fitted to one half of the text with only the blocks of a width, judged
by the other half with the whole covariance.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: as minitron sets it

import numpy as np

from minitron_core.gguf import F32, TYPE_ID, TensorInfo, open_gguf
from minitron_quant.blocks import decode_blocks, encode_blocks
from minitron_quant.covariance.files import open_covariance
from minitron_quant.gptq.cholesky import BlockFactor, error_of, factor_block
from minitron_quant.gptq.encode_rows import encode_rows
from minitron_quant.kernels import gptq
from minitron_quant.quantize.encode import EncodeTask, encode

# columns × rows of one layer: q, k, v, output, gate, up, down
LAYER = [(3072, 4096), (3072, 1024), (3072, 1024), (4096, 3072), (3072, 9216), (3072, 9216)]
LAYER += [(9216, 3072)]
TRIED = ("q2_K", "q4_K", "iq2_xs", "iq3_s")
ROWS = 48


def factors(columns: int, width: int) -> list[BlockFactor]:
    """Blocks of a covariance with a few strong directions."""
    random = np.random.default_rng(0)
    found = []
    for start in range(0, columns, width):
        size = min(width, columns - start)
        mix = random.standard_normal((size // 8, size))
        found.append(factor_block(start, mix.T @ mix / len(mix) + 0.1 * np.eye(size), 0.03))
    return found


def time_layer(kind: int, width: int, threads: int) -> tuple[float, float]:
    """Wall and processor seconds of encoding a layer, factors not counted."""
    random = np.random.default_rng(1)
    blocks = {columns: factors(columns, width) for columns, _ in LAYER}
    weights = [random.standard_normal((rows, columns), np.float32) for columns, rows in LAYER]

    def tasks() -> Iterator[EncodeTask]:
        for values in weights:
            rows, columns = values.shape
            info = TensorInfo("x", (columns, rows), F32, 0, values.nbytes)
            mine = blocks[columns]
            yield EncodeTask(
                info,
                values.reshape(-1).view(np.uint8),
                (kind,),
                np.ones((1, columns), np.float32),
                refine=lambda k, v, data, mine=mine: encode_rows(k, v, data, mine),
            )

    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for _slab in encode(tasks(), threads):
        pass
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu


def try_widths(model: Path, path: Path) -> None:
    """Print the error on the other half of the text, over that of plain codes, by block width."""
    file, covariance = open_gguf(model), open_covariance(path)
    widths = (64, 128, 256, 512, 1024)
    print(f"| type | {' | '.join(map(str, widths))} |\n|---|{'---:|' * len(widths)}")
    for name in TRIED:
        ratios: dict[int, list[float]] = {width: [] for width in widths}
        for source in dict.fromkeys(covariance.taken_by.values()):
            info = file.tensor(source)
            columns = info.shape[0]
            if covariance.edges(source, columns) != [(0, columns)]:
                sys.exit("the covariance must be one of all columns: --effort high")
            rows = np.linspace(0, info.rows - 1, ROWS).astype(int)
            data = file.data(info).reshape(info.rows, -1)[rows]
            values = decode_blocks(info.type, data, (ROWS, columns))
            fit, judge = (covariance.mean(source, 0, (part,)) for part in (0, 1))
            kind, judges = TYPE_ID[name], [factor_block(0, judge, 0.01)]
            first = encode_blocks(kind, values, fit.diagonal().astype(np.float32))
            before = error_of(decode_blocks(kind, first, values.shape) - values, judges).sum()
            for width in widths:
                blocks = [
                    factor_block(start, fit[start : start + width, start : start + width], 0.03)
                    for start in range(0, columns, width)
                ]
                ours = encode_rows(kind, values, first, blocks)
                after = error_of(decode_blocks(kind, ours, values.shape) - values, judges).sum()
                ratios[width].append(float(after / before))
        print(
            f"| {name} | {' | '.join(f'{np.mean(r):.3f}' for r in ratios.values())} |", flush=True
        )


def main() -> int:
    """What the options ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--type", action="append", choices=sorted(TYPE_ID))
    parser.add_argument("--width", type=int, default=1024, help="of a block of columns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--numpy", action="store_true", help="numpy's loops, too")
    parser.add_argument("--covariance", type=Path)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    if given.covariance and given.model:
        try_widths(given.model, given.covariance)
        return 0
    print("| type | loops | seconds | of processors |\n|---|---|---:|---:|")
    compiled = gptq.usable()
    for name in given.type or ["q3_K"]:
        for native in (True, False) if given.numpy else (compiled,):
            gptq.usable = lambda native=native: compiled and native
            wall, cpu = time_layer(TYPE_ID[name], given.width, given.threads)
            loops = "compiled" if gptq.usable() else "numpy"
            print(f"| {name} | {loops} | {wall:.1f} | {cpu:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

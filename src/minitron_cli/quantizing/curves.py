"""Size against divergence, drawn with characters for a terminal."""

import math
from collections.abc import Sequence

from minitron_quant.mixed_precision.size_solver import Point

_WIDTH, _HEIGHT = 64, 18


def draw(curve: Sequence[Point], presets: Sequence[Point]) -> str:
    """The solved curve as dots and the levels as circles; divergence on a logarithmic scale."""
    shown = [point for point in (*curve, *presets) if 0 < point.predicted < math.inf]
    if len(shown) < 2:
        return ""
    sizes = [point.bytes / 2**20 for point in shown]
    heights = [math.log10(point.predicted) for point in shown]
    cells = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    for point, size, height in zip(shown, sizes, heights, strict=True):
        column = _place(size, min(sizes), max(sizes), _WIDTH)
        row = _HEIGHT - 1 - _place(height, min(heights), max(heights), _HEIGHT)
        cells[row][column] = "o" if point in presets else "·"
    labels = {0: f"{10 ** max(heights):9.2g}", _HEIGHT - 1: f"{10 ** min(heights):9.2g}"}
    lines = [f"{labels.get(number, ''):>9} │{''.join(row)}" for number, row in enumerate(cells)]
    axis = f"{'KLD':>9} └{'─' * _WIDTH}"
    ends = f"{min(sizes):.2f}", f"{max(sizes):.2f} MiB"
    scale = f"{'':>11}{ends[0]}{ends[1]:>{_WIDTH - len(ends[0])}}"
    return "\n".join([*lines, axis, scale, f"{'':>11}· solved   o llama.cpp's levels"])


def _place(value: float, low: float, high: float, cells: int) -> int:
    return round((value - low) / (high - low) * (cells - 1)) if high > low else 0

"""The picture of an importance matrix: layers across, roles down."""

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minitron_quant.imatrix.statistics import WeightStatistics

STYLE = """
svg.heat text { font: 11px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  fill: var(--faint); }
svg.heat rect { fill: var(--accent); }
"""
_WIDTH, _ROW, _TOP, _BOTTOM = 720.0, 20.0, 4.0, 34.0
_CHARACTER = 6.8
# the faintest cell, which still shows that there is one
_FAINTEST = 0.06


def importance_by_layer(statistics: Sequence["WeightStatistics"]) -> str:
    """The mean square of the inputs of every weight, the stronger the larger, by logarithm.

    An empty text where no weight belongs to a layer.
    """
    layered = {
        (row.layer, _role(row.name)): row.mean
        for row in statistics
        if row.layer is not None and row.mean > 0
    }
    if not layered:
        return ""
    roles = list(dict.fromkeys(role for _, role in layered))
    layers = 1 + max(layer for layer, _ in layered)
    left = _CHARACTER * max(map(len, roles)) + 8
    step = (_WIDTH - left) / layers
    height = _TOP + _ROW * len(roles) + _BOTTOM
    logs = [math.log(mean) for mean in layered.values()]
    low, span = min(logs), (max(logs) - min(logs)) or 1.0
    body = [_text(left - 6, _TOP + _ROW * row + 14, role, "end") for row, role in enumerate(roles)]
    for (layer, role), mean in layered.items():
        strength = _FAINTEST + (1 - _FAINTEST) * (math.log(mean) - low) / span
        x, y = left + step * layer, _TOP + _ROW * roles.index(role)
        body.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{step:.2f}" height="{_ROW:g}" '
            f'fill-opacity="{strength:.3f}"><title>layer {layer}, {escape(role)}: {mean:.3g}'
            "</title></rect>\n"
        )
    every = max(1, math.ceil(layers * 3 * _CHARACTER / (_WIDTH - left)))
    under = _TOP + _ROW * len(roles)
    for layer in range(0, layers, every):
        body.append(_text(left + step * (layer + 0.5), under + 14, str(layer), "middle"))
    body.append(_text(_WIDTH, under + 29, "Layer", "end"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="heat" viewBox="0 0 {_WIDTH:g} {height:g}" '
        f'role="img" aria-label="importance by layer">\n{"".join(body)}</svg>\n'
    )


def _role(name: str) -> str:
    return name.split(".", 2)[2].removesuffix(".weight")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>\n'

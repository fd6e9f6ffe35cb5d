"""The figure: scales, and names that cover neither each other nor a point."""

import math
import xml.etree.ElementTree as ET
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.measured_levels import MEASURED
from helpers.support import RECORDED
from minitron_cli.report.figure import (
    NARROW_SHAPE,
    WIDE_SHAPE,
    Axis,
    Point,
    Shape,
    pareto,
    size_figure,
)
from minitron_cli.report.heatmap import importance_by_layer
from minitron_cli.report.labels import Box, place_labels
from minitron_cli.report.scale import Kind, Scale, ranging
from minitron_quant.imatrix.files import read_imatrix
from minitron_quant.imatrix.statistics import weight_statistics

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [
    Point(name, size, kld, kld * 0.95, kld * 1.05) for name, (size, _, kld) in MEASURED.items()
]

spread = st.floats(0.5, 300, allow_nan=False)


def boxes(svg: str) -> list[tuple[str, Box]]:
    """The names in a picture, as wide as their font makes them."""
    found = []
    for text in ET.fromstring(svg).iter(f"{SVG}text"):
        if text.get("class") == "name":
            name, x, y = text.text or "", float(text.get("x", 0)), float(text.get("y", 0))
            half = 3.3 * len(name)
            found.append((name, Box(x - half, y - 9, x + half, y + 2)))
    return found


@pytest.mark.parametrize("shape", [WIDE_SHAPE, NARROW_SHAPE], ids=lambda shape: shape.name)
def test_size_figure_names_every_level_without_collisions(shape: Shape) -> None:
    figure = size_figure(POINTS, Axis("KL divergence"), shape)
    named = boxes(figure.svg)
    assert {name for name, _ in named} | set(figure.unnamed) == set(MEASURED)
    if shape is WIDE_SHAPE:
        assert figure.unnamed == ()
    for (_, one), (_, other) in combinations(named, 2):
        assert not one.overlaps(other)
    dots = [
        (float(dot.get("cx", 0)), float(dot.get("cy", 0)))
        for dot in ET.fromstring(figure.svg).iter(f"{SVG}circle")
        if dot.get("class") == "dot"
    ]
    assert len(dots) == len(MEASURED)
    for x, y in dots:
        dot = Box(x - 3, y - 3, x + 3, y + 3)
        assert not any(box.overlaps(dot) for _, box in named)
    frame = Box(0, 0, shape.width, shape.height)
    assert all(frame.contains(box) for _, box in named)


def test_size_figure_is_the_same_every_time_and_takes_the_pages_colours() -> None:
    svg = size_figure(POINTS, Axis("KL divergence")).svg
    assert svg == size_figure(POINTS, Axis("KL divergence")).svg
    assert "<style" not in svg
    alone = size_figure(POINTS, Axis("KL divergence"), alone=True).svg
    assert "prefers-color-scheme: dark" in alone and "--point" in alone


def test_size_figure_draws_one_point_and_marks_what_is_beaten() -> None:
    one = size_figure([Point("a<b", 3, 0.5, 0.5, 0.5, "about & all", True)], Axis("PPL"))
    root = ET.fromstring(one.svg)
    assert [each.get("class") for each in root.iter(f"{SVG}g")] == ["point beaten"]
    assert [each.text for each in root.iter(f"{SVG}title")] == ["about & all"]


@settings(max_examples=40)
@given(st.lists(st.tuples(spread, spread), min_size=1, max_size=25))
def test_place_labels_keeps_names_clear_of_names_and_points(
    points: list[tuple[float, float]],
) -> None:
    area = Box(0, 0, 300, 300)
    labels = place_labels(points, [40.0] * len(points), 12, area)
    placed = [label.box for label in labels if label is not None]
    for one, other in combinations(placed, 2):
        assert not one.overlaps(other)
    for box in placed:
        assert area.contains(box)
        assert not any(box.left < x < box.right and box.top < y < box.bottom for x, y in points)
    if len(points) == 1 and 60 < points[0][0] < 240 and 60 < points[0][1] < 240:
        assert labels[0] is not None and labels[0].leader is None


def test_box_crossed_by_lines_that_pass_through() -> None:
    box = Box(0, 0, 10, 10)
    assert box.crossed(((-5, 5), (15, 5))) and box.crossed(((5, 5), (6, 6)))
    assert not box.crossed(((-5, -1), (15, -1))) and not box.crossed(((-5, 5), (-1, 5)))
    assert not box.crossed(((-5, 12), (2, 20)))


@given(
    st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=9),
    st.sampled_from(["linear", "log", "asinh"]),
    st.integers(3, 9),
)
@example([5e-324], "linear", 3)
def test_scale_places_values_in_order_and_ticks_inside(
    values: list[float], kind: Kind, most: int
) -> None:
    if kind == "log":
        values = [abs(value) + 1e-6 for value in values]
    scale = ranging(values, 0, 100, kind)
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places) and all(0 <= place <= 100 for place in places)
    ticks = scale.ticks(most)
    assert len(ticks) <= most + 1 and all(math.isfinite(tick) for tick in ticks)
    assert ticks == sorted(ticks)


def test_scale_ticks_are_round() -> None:
    assert Scale("log", 2.2, 8.8, 0, 1).ticks(7) == [3.0, 4.0, 5.0, 6.0, 8.0]
    assert Scale("log", 1.5e-4, 0.4, 0, 1).ticks(7) == [0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3]
    assert Scale("linear", -0.3, 2.1, 0, 1).ticks(6) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert Scale("asinh", -0.02, 0.3, 0, 1, 0.001).ticks(7) == [-0.01, -0.001, 0, 0.001, 0.01, 0.1]


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12, unique=True)
)
def test_pareto_keeps_what_no_other_point_beats(points: list[tuple[int, int]]) -> None:
    front = {points[number] for number in pareto(points)}
    unbeaten = {
        p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)
    }
    assert front == unbeaten


def test_importance_by_layer_draws_layers_and_roles() -> None:
    picture = importance_by_layer(
        weight_statistics(read_imatrix(RECORDED / "nano-llama.imatrix.gguf"))
    )
    root = ET.fromstring(picture)
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"attn_q", "attn_output", "ffn_down", "Layer", "0", "5"} <= texts
    cells = list(root.iter(f"{SVG}rect"))
    assert len(cells) == 42 and all(float(c.get("fill-opacity", 0)) <= 1 for c in cells)
    assert importance_by_layer([]) == ""

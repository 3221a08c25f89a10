"""Draw a network's anatomy: strides from top to bottom and computation from left to right, which gives a U."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Line

from .anatomy import GROUPS, IMAGE, MAPS, Anatomy, Link

# Inches on a page as wide as a README shows it, so that 8-point letters remain legible.
BOX_WIDTH, BOX_HEIGHT, PITCH, GAP, LABELS = 1.34, 0.95, 1.82, 0.2, 0.8
COLOURS = ("#cfe3f5", "#d6efd2", "#fbe0b8", "#e4d8f0", "#f9d1d1")
INK, PALE = "#333333", "#f4f4f4"
LETTERS_A_LINE, LINE = 20, 0.145


@dataclass(frozen=True)
class Box:
    """A part on the page: inches from the left and from the top (negative), strides of its rows, texts and colour."""

    x: float
    top: float
    bottom: float
    strides: tuple[int, ...]
    title: str
    text: str
    colour: str

    @property
    def y(self) -> float:
        return (self.top + self.bottom) / 2.0


def draw(network: Anatomy, title: str, path: Path) -> None:
    """Write a PNG; its text chunk ``Description`` contains the anatomy that it shows (:func:`description`)."""
    parts = {part.name: tuple(stride for stride, _ in part.outputs) for part in network.parts}
    reached = sorted({link.stride for link in network.links if link.target == MAPS})
    strides = {IMAGE: (1,), **parts, MAPS: tuple(reached)}  # strides of what leaves each box, fine to coarse
    columns = _columns(network, strides)
    rows = _rows(strides, columns)
    boxes = _boxes(network, strides, columns, rows)
    width, height = LABELS + (max(columns.values()) + 1) * PITCH, -min(bottom for _, bottom in rows.values())
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(0.0, width), ylim=(-height, 0.0))
    axes.set_axis_off()
    for number, (stride, (top, bottom)) in enumerate(rows.items()):
        axes.axhspan(bottom, top, color=PALE if number % 2 == 0 else "white", zorder=0)
        label = "full size" if stride == 1 else f"1/{stride}"
        axes.text(0.12, (top + bottom) / 2.0, label, va="center", fontsize=10, color="#777777")
    axes.text(width - GAP, -0.3, title, ha="right", va="center", fontsize=12, fontweight="bold", color=INK)
    _draw_links(axes, network, boxes, rows)
    for box in boxes.values():
        _draw_box(axes, box)
    figure.savefig(path, dpi=150, metadata={"Software": None, "Description": description(network)})


def description(network: Anatomy) -> str:
    """Return everything that a drawing shows as text, so that a test can detect one that is out of date."""
    return "\n".join(map(str, (*network.parts, *network.links)))


def _columns(network: Anatomy, strides: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the column of each box: right of boxes in the same row that it reads from, above or below the others."""
    columns = dict.fromkeys(strides, 0)
    for name in strides:
        for link in network.links:
            if link.target == name and not link.training_only:
                before = strides[link.source]
                beside = before[0] <= strides[name][-1] and strides[name][0] <= before[-1]
                columns[name] = max(columns[name], columns[link.source] + beside)
    return columns


def _rows(strides: dict[str, tuple[int, ...]], columns: dict[str, int]) -> dict[int, tuple[float, float]]:
    """Return top and bottom of each stride's row, which is as high as its fullest cell."""
    rows: dict[int, tuple[float, float]] = {}
    top = 0.0
    for stride in sorted({stride for group in strides.values() for stride in group}):
        cells = [columns[name] for name, group in strides.items() if group == (stride,)]
        stacked = max((cells.count(column) for column in cells), default=1)
        rows[stride] = (top, top - stacked * (BOX_HEIGHT + GAP) - GAP)
        top = rows[stride][1]
    return rows


def _boxes(
    network: Anatomy, strides: dict[str, tuple[int, ...]], columns: dict[str, int], rows: dict[int, tuple[float, float]]
) -> dict[str, Box]:
    """Place every part, the image and the maps in their cells; those in the same cell are stacked."""
    channels = sum(link.channels for link in network.links if link.target == MAPS)
    says = {IMAGE: ("CT", "1 channel", "white"), MAPS: ("maps", f"{channels} channels", "white")}
    for part in network.parts:
        colour = COLOURS[list(GROUPS).index(part.group)]
        says[part.name] = (part.name, f"{part.text}\n{thousands(part.parameters)} parameters", colour)
    boxes: dict[str, Box] = {}
    for name, own in strides.items():
        cell = [other for other in strides if (columns[other], strides[other]) == (columns[name], own)]
        middle = (rows[own[0]][0] + rows[own[-1]][1]) / 2.0
        height = rows[own[0]][0] - rows[own[-1]][1] - 2 * GAP if len(own) > 1 else BOX_HEIGHT
        y = middle + ((len(cell) - 1) / 2.0 - cell.index(name)) * (BOX_HEIGHT + GAP)
        x = LABELS + (columns[name] + 0.5) * PITCH
        boxes[name] = Box(x, y + height / 2.0, y - height / 2.0, own, *says[name])
    return boxes


def thousands(number: float) -> str:
    """Format a whole number in groups of three digits."""
    return f"{number:,.0f}".replace(",", " ")


def _draw_box(axes: Axes, box: Box) -> None:
    corner, height = (box.x - BOX_WIDTH / 2.0, box.bottom), box.top - box.bottom
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(corner, BOX_WIDTH, height, boxstyle=style, facecolor=box.colour, edgecolor=INK, linewidth=0.8)
    )
    lines = [
        line for text in box.text.split("\n") for line in textwrap.wrap(text, LETTERS_A_LINE, break_on_hyphens=False)
    ]
    y = box.y + LINE * len(lines) / 2.0
    axes.text(box.x, y, box.title, ha="center", va="center", fontsize=9, fontweight="bold", color=INK)
    for number, line in enumerate(lines, start=1):
        axes.text(box.x, y - number * LINE, line, ha="center", va="center", fontsize=8, color=INK)


def _draw_links(axes: Axes, network: Anatomy, boxes: dict[str, Box], rows: dict[int, tuple[float, float]]) -> None:
    """Draw an arrow from box to box for each link, with the number of channels where it starts."""
    labels: dict[tuple[float, float], str] = {}  # one label where several arrows share their start
    for link in network.links:
        points = _route(link, boxes[link.source], boxes[link.target], sum(rows[link.stride]) / 2.0)
        colour, style = ("#999999", "--") if link.training_only else (INK, "-")
        path = Line(points, [Line.MOVETO] + [Line.LINETO] * (len(points) - 1))
        arrow = FancyArrowPatch(
            path=path, arrowstyle="-|>", mutation_scale=9, linestyle=style, color=colour, linewidth=1.0, zorder=1
        )
        axes.add_patch(arrow)
        (x, y), (next_x, next_y) = points[1:3] if link.training_only else points[:2]
        at = (x + 0.06, (y + next_y) / 2.0) if x == next_x else (x + 0.05, y + 0.09)
        labels[at] = "in training" if link.training_only else str(link.channels)
    for (x, y), label in labels.items():
        axes.text(x, y, label, ha="left", va="center", fontsize=7.5, color=INK)


def _route(link: Link, source: Box, target: Box, row: float) -> list[tuple[float, float]]:
    """Return the corners of an arrow: along the row, straight up or down, or along the row and then up or down."""
    right, left = source.x + BOX_WIDTH / 2.0, target.x - BOX_WIDTH / 2.0
    start = row if len(source.strides) > 1 else source.y
    end = row if len(target.strides) > 1 else target.y
    if link.training_only:  # above everything in the row, entering the target above the arrow of evaluation
        lane, turn, end = source.top + 0.6 * GAP, left - 0.25, end + 0.2
        return [(source.x, source.top), (source.x, lane), (turn, lane), (turn, end), (left, end)]
    if link.stride in target.strides and link.stride in source.strides:
        turn = left - 0.16
        bend = [] if start == end else [(turn, start), (turn, end)]
        return [(right, start), *bend, (left, end)]
    edge = target.bottom if target.y > start else target.top
    if source.x == target.x:
        return [(source.x, source.top if target.y > start else source.bottom), (target.x, edge)]
    return [(right, start), (target.x, start), (target.x, edge)]

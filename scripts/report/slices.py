"""Slices of a volume with outlines, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core.files import write_figure
from ..core.geometry import BoolArray, FloatArray, spacing_mm
from .html.pictures import LUNG_WINDOW


@dataclass(frozen=True)
class Slice:
    """A slice of a volume.

    Attributes:
        axis: the array axis perpendicular to it, 0 to 2.
        half_width_mm: half the width of what is shown around the centre; ``None`` for the whole slice.
    """

    axis: int
    half_width_mm: float | None = None


def draw_slices(
    path: Path,
    image_hu: npt.NDArray[np.int16],
    affine_ras: FloatArray,
    centre: Sequence[float],
    views: Sequence[Slice],
    outlines: Sequence[tuple[BoolArray, str, str]],
    size_inches: tuple[float, float],
) -> Path:
    """Draw slices through one voxel side by side, in the lung window, with the head at the top.

    Args:
        path: the PNG file; its folder is created.
        image_hu: ``[I, J, K]``, k along the body.
        affine_ras: ``[4, 4]``, voxel to RAS mm.
        centre: i, j, k; may be fractional.
        views: from left to right.
        outlines: masks ``[I, J, K]``, each with a colour and a line style of matplotlib.
        size_inches: width and height of the picture.

    Returns:
        The PNG file.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # takes seconds, so only when something is drawn

    step_mm = spacing_mm(affine_ras)
    figure = Figure(figsize=size_inches, facecolor="black")
    for axes, view in zip(np.atleast_1d(figure.subplots(1, len(views))), views, strict=True):
        across, up = (axis for axis in range(3) if axis != view.axis)
        cut = np.take(image_hu, round(centre[view.axis]), view.axis).T
        is_head_up = up == 2 and affine_ras[2, 2] > 0
        aspect = step_mm[up] / step_mm[across]
        axes.imshow(cut, "gray", aspect=aspect, vmin=LUNG_WINDOW.black_hu, vmax=LUNG_WINDOW.white_hu)
        for mask, colour, dash in outlines:
            inside = np.take(mask, round(centre[view.axis]), view.axis).T
            if inside.any():
                axes.contour(inside, levels=[0.5], colors=colour, linestyles=dash, linewidths=1.1)
        if view.half_width_mm is not None:
            half = view.half_width_mm / step_mm
            axes.set_xlim(centre[across] - half[across], centre[across] + half[across])
            axes.set_ylim(centre[up] + half[up], centre[up] - half[up])
        if is_head_up:
            axes.invert_yaxis()
        axes.set_axis_off()
    figure.subplots_adjust(0, 0, 1, 1, wspace=0.02)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_figure(path, figure, dpi=90, facecolor="black", metadata={"Software": None})

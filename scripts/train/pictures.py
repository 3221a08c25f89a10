"""Pictures of what the network finds in validation scans, to follow the progress of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, Events
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from ..core.files import write_figure
from ..core.geometry import BoolArray, FloatArray, apply_affine
from ..core.labels import NODULE
from ..core.records import Detection, centre_voxels
from ..decode.candidates import MASK_LOGITS
from ..decode.masks import logits_at
from ..metrics.froc import inside_findings

CLOSE_UPS = 4  # per scan: its largest nodules, then its strongest false findings
HALF_WIDTH_MM = 32.0  # of a close-up: shows a nodule of 30 mm with its surroundings
MARKED = 8  # candidates marked on the overview
OUTLINED, OUTLINE_MARGIN_MM = 0.2, 5.0  # least probability of a candidate with an outline; margin around it
TRUE, FOUND = "#3ddc84", "#ff9f43"  # colours of reference and prediction


class Scene:
    """One validation scan with what the pictures need, in voxels of the network's input.

    Args:
        item: the scan's item after the validation's postprocessing.
        stride: input voxels per output cell.
        number: names a scan that has no name.

    Attributes:
        image: ``[I, J, K]`` scaled intensities, RAS.
        affine: ``[4, 4]``, voxel to RAS mm.
        nodules: ``[N, 4]``, centre (voxel) and diameter (mm) of the nodules to find.
        candidates: in descending order of probability.
        centres: ``[M, 3]``, centres of the candidates (voxel).
        mask_logits: ``[M, I/s, J/s, K/s]``, or ``None``.
        stride: input voxels per cell of ``mask_logits``.
        name: of the scan.
    """

    def __init__(self, item: Mapping[str, Any], stride: int, number: int) -> None:
        self.stride, self.name = stride, str(item.get("name", f"scan {number}"))
        self.image = np.asarray(item["image"].as_tensor()[0].cpu(), dtype=np.float32)
        self.affine = np.asarray(item["image"].affine, dtype=np.float64)
        self.nodules = np.asarray(item["nodule"], dtype=np.float64)[np.asarray(item["label"]) == NODULE]
        self.candidates: Sequence[Detection] = item["candidates"]
        self.centres = centre_voxels(self.candidates, self.affine)
        self.mask_logits = None if item.get("maps") is None else item["maps"][MASK_LOGITS]

    def near_a_finding(self, voxels: npt.NDArray[np.int64]) -> BoolArray:
        """Return ``[...]``: which voxels ``[..., 3]`` are near a likely candidate, where outlines are drawn."""
        near = np.zeros(voxels.shape[:-1], dtype=bool)
        for centre, candidate in zip(self.centres, self.candidates, strict=True):
            if candidate.probability >= OUTLINED:
                near |= np.abs(voxels - centre).max(axis=-1) <= candidate.diameter_mm / 2.0 + OUTLINE_MARGIN_MM
        return near

    def sights(self) -> list[tuple[FloatArray, str]]:
        """Return centre (voxel) and title of each close-up: the largest nodules, then the strongest false findings."""
        hits = inside_findings(self.centres, self.nodules[:, :3], self.nodules[:, 3])
        sights = []
        for n in np.argsort(-self.nodules[:, 3])[: CLOSE_UPS - 1]:
            scores = [c.probability for c, hit in zip(self.candidates, hits[:, n], strict=True) if hit]
            found = f"found, p = {max(scores):.2f}" if scores else "missed"
            sights.append((self.nodules[n, :3], f"nodule of {self.nodules[n, 3]:.0f} mm: {found}"))
        for m in np.flatnonzero(~hits.any(axis=1))[: CLOSE_UPS - len(sights)]:
            sights.append((self.centres[m], f"false finding, p = {self.candidates[m].probability:.2f}"))
        return sights


class PredictionPictures:
    """Draw the first scans of each validation run into one PNG, and add it to TensorBoard if a writer is given.

    Each scan has a row: the lungs from the front with nodules (green) and the strongest candidates (orange), then axial
    close-ups with the outlines of the predicted masks.

    Args:
        folder: receives ``epoch_0005.png`` …
        stride: input voxels per output cell.
        scans: number of rows.
        writer: a TensorBoard SummaryWriter, or ``None``.
    """

    def __init__(self, folder: str, stride: int, scans: int = 2, writer: Any = None) -> None:
        self.folder, self.stride, self.scans, self.writer = Path(folder), stride, scans, writer
        self._scenes: list[Scene] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self._scenes.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self._draw)

    def _keep(self, engine: Engine) -> None:
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            if len(self._scenes) < self.scans:
                self._scenes.append(Scene({**batch, **output}, self.stride, len(self._scenes) + 1))

    def _draw(self, engine: Engine) -> None:
        if not self._scenes:
            return
        figure = draw_scenes(self._scenes)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_figure(self.folder / f"epoch_{engine.state.epoch:04d}.png", figure)
        if self.writer is not None:
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            self.writer.add_image("predictions", pixels, engine.state.epoch, dataformats="HWC")
        self._scenes.clear()


def draw_scenes(scenes: Sequence[Scene]) -> Figure:
    """Draw one row of pictures per scan."""
    figure = Figure(figsize=(3.0 * (1 + CLOSE_UPS), 3.3 * len(scenes)), dpi=90, layout="constrained", facecolor="white")
    axes = figure.subplots(len(scenes), 1 + CLOSE_UPS, squeeze=False)
    for row, scene in zip(axes, scenes, strict=True):
        for ax in row:
            ax.set_axis_off()
        _overview(row[0], scene)
        for ax, (centre, title) in zip(row[1:], scene.sights(), strict=False):
            _close_up(ax, scene, centre, title)
    return figure


def _show(ax: Axes, picture: npt.NDArray[Any], title: str) -> None:
    """Show a picture ``[columns, rows]`` along falling RAS axes: right on the left, front or head at the top."""
    columns, rows = picture.shape
    ax.imshow(picture.T, cmap="gray", vmin=-1, vmax=1, interpolation="bilinear", aspect="equal")
    ax.set_xlim(columns - 0.5, -0.5)
    ax.set_ylim(-0.5, rows - 0.5)
    ax.set_title(title, fontsize=8)


def _ring(ax: Axes, place: tuple[float, float], radius: float, colour: str) -> None:
    ax.add_patch(Circle(place, max(radius, 2.0), fill=False, color=colour, linewidth=1.2))


def _overview(ax: Axes, scene: Scene) -> None:
    """Draw the scan from the front, as on a radiograph: intensities are averaged along the line of sight."""
    summed = scene.image.mean(axis=1)
    low, high = np.percentile(summed, [1, 99])
    _show(ax, 2.0 * (summed - low) / max(high - low, 1e-6) - 1.0, scene.name)
    for i, _, k, diameter in scene.nodules:
        _ring(ax, (i, k), diameter / 2.0 + 3.0, TRUE)
    for (i, _, k), candidate in list(zip(scene.centres, scene.candidates, strict=True))[:MARKED]:
        _ring(ax, (i, k), candidate.diameter_mm / 2.0, FOUND)


def _close_up(ax: Axes, scene: Scene, centre: FloatArray, title: str) -> None:
    """Draw the axial slice through a position, with the reference and the predicted outline."""
    middle = np.rint(centre).astype(int)
    shape = np.array(scene.image.shape)
    middle = np.clip(middle, 0, shape - 1)
    low, high = np.maximum(middle - int(HALF_WIDTH_MM), 0), np.minimum(middle + int(HALF_WIDTH_MM) + 1, shape)
    k = int(middle[2])
    _show(ax, scene.image[low[0] : high[0], low[1] : high[1], k], title)
    for i, j, z, diameter in scene.nodules:
        inside = (diameter / 2.0) ** 2 - (z - k) ** 2
        if inside > 0:
            _ring(ax, (i - low[0], j - low[1]), float(np.sqrt(inside)) + 1.5, TRUE)
    if scene.mask_logits is not None:
        grid = np.stack(np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), k, indexing="ij"), axis=-1)
        logits = logits_at(scene.mask_logits, scene.affine, apply_affine(scene.affine, grid), scene.stride)[..., 0]
        logits = np.where(scene.near_a_finding(grid[:, :, 0]), logits, -1.0)
        if logits.min() < 0 < logits.max():
            ax.contour(logits.T, levels=[0.0], colors=FOUND, linewidths=1.0)

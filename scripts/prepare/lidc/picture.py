"""The command ``lidc_picture``: a prepared nodule over its scan, to see that masks and image agree."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ...core.files import write_figure
from ...core.geometry import FloatArray, apply_affine, spacing_mm, swap_lps_ras
from ...read.reader import read_scan
from ...read.scan import Volume
from .outputs import RECORD
from .readings import LidcError

logger = logging.getLogger(__name__)

LUNG_WINDOW_HU = (-1350, 150)  # low, high
HALF_WIDTH_MM = 32.0  # of the close views
OURS, REFERENCE = "#ffb000", "#40c0ff"


def lidc_picture(prepared_dir: str, output: str, name: str = "", nodule: int = 1, reference: str = "") -> None:
    """Draw one nodule of a prepared scan: whole axial slice, and close axial, coronal and sagittal views.

    Args:
        prepared_dir: what the command lidc wrote.
        output: PNG file to write.
        name: series UID; the first scan by default.
        nodule: its value in the scan's mask.
        reference: a further mask (NIfTI, any grid), drawn as a dashed line.

    Raises:
        LidcError: no such scan or nodule.
    """
    root = Path(str(prepared_dir)).resolve()
    item = _item(root, str(name))
    scan = read_scan(str(root / item["image"]))
    mask = np.asarray(nib.Nifti1Image.from_filename(root / item["mask"]).dataobj) == int(nodule)
    if not mask.any():
        raise LidcError(f"{item['name']}: expected a nodule with the mask value {nodule}, got none; name another")
    lines = [(mask, OURS, "solid")]
    if reference:
        lines.append((_on_grid(Path(str(reference)), scan), REFERENCE, "dashed"))
    centre_lps_mm = item["nodules"][int(nodule) - 1]["centre_lps_mm"]
    centre = apply_affine(np.linalg.inv(scan.affine_ras), swap_lps_ras(centre_lps_mm))
    _draw(Path(str(output)), scan, centre, lines)
    logger.info("%s written", output)


def _item(root: Path, name: str) -> dict[str, Any]:
    records = sorted((root / "scans").glob(f"{name or '[0-9]*'}/{RECORD}"))
    if not records:
        raise LidcError(f"{root}: expected a prepared scan {name}, found none; run the command lidc first")
    item: dict[str, Any] = json.loads(records[0].read_text(encoding="utf-8"))["item"]
    return item


def _on_grid(path: Path, scan: Volume) -> npt.NDArray[np.bool_]:
    """A mask on the grid of a scan, nearest voxel."""
    image = nib.Nifti1Image.from_filename(path)
    to_mask = np.linalg.inv(np.asarray(image.affine)) @ scan.affine_ras
    values = np.asarray(image.dataobj).astype(np.uint8)
    moved = ndimage.affine_transform(values, to_mask[:3, :3], to_mask[:3, 3], scan.image_hu.shape, order=0)
    return np.asarray(moved > 0)


def _draw(path: Path, scan: Volume, centre: FloatArray, lines: list[tuple[npt.NDArray[np.bool_], str, str]]) -> None:
    from matplotlib.figure import Figure

    i, j, k = np.rint(centre).astype(int)
    step = spacing_mm(scan.affine_ras)
    figure = Figure(figsize=(12, 3), facecolor="black")
    views: tuple[tuple[Any, tuple[int, int], bool], ...] = (
        (np.s_[:, :, k], (0, 1), False),
        (np.s_[:, :, k], (0, 1), True),
        (np.s_[:, j, :], (0, 2), True),
        (np.s_[i, :, :], (1, 2), True),
    )
    for column, (cut, (across, up), is_close) in enumerate(views):
        axes = figure.add_axes((column / 4 + 0.002, 0, 0.246, 1))
        head_up = "lower" if up == 2 and scan.affine_ras[2, 2] > 0 else "upper"
        style: dict[str, Any] = {"origin": head_up, "aspect": step[up] / step[across]}
        low, high = LUNG_WINDOW_HU
        axes.imshow(scan.image_hu[cut].T, cmap="gray", vmin=low, vmax=high, interpolation="nearest", **style)
        for mask, colour, dash in lines:
            if mask[cut].any():
                axes.contour(mask[cut].T, levels=[0.5], colors=colour, linestyles=dash, linewidths=1.1)
        if is_close:
            for axis, limits in ((across, axes.set_xlim), (up, axes.set_ylim)):
                half = HALF_WIDTH_MM / step[axis]
                ends = (centre[axis] - half, centre[axis] + half)
                limits(*(ends if axis == across or head_up == "lower" else ends[::-1]))
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(path, figure, dpi=90, facecolor="black", metadata={"Software": None})

"""The command ``lidc_picture``: draws a prepared nodule over its scan, to check that mask and image agree."""

from __future__ import annotations

import logging
from pathlib import Path

from ...core.files import read_record
from ...read.instances import labels_of, on_grid
from ...read.reader import read_scan
from ...report.slices import Slice, draw_slices
from .outputs import RECORD
from .readings import LidcError

logger = logging.getLogger(__name__)

HALF_WIDTH_MM = 32.0  # of the close views
OURS, REFERENCE = "#ffb000", "#40c0ff"


def lidc_picture(prepared_dir: str, output: str, name: str = "", nodule: int = 1, reference: str = "") -> None:
    """Draw one nodule of a prepared scan: whole axial slice, and close axial, coronal and sagittal views.

    Args:
        prepared_dir: output folder of the command lidc.
        output: PNG file to write.
        name: series UID; the first scan by default.
        nodule: the nodule's value in the scan's mask.
        reference: another mask (any image format, any grid), drawn as a dashed line.

    Raises:
        UserError: there is no such scan or nodule, a file cannot be read, or the picture cannot be written.
    """
    root = Path(prepared_dir).resolve()
    records = sorted((root / "scans").glob(f"{name or '[0-9]*'}/{RECORD}"))
    if not records:
        raise LidcError(f"{root}: expected a prepared scan {name}, found none; run the command lidc first")
    item = read_record(records[0])["item"]
    scan = read_scan(str(root / item["image"]))
    mask = on_grid(labels_of(root / item["mask"]), scan.grid) == nodule
    if not mask.any():
        raise LidcError(f"{item['name']}: expected a nodule with the mask value {nodule}, got none; choose another")
    outlines = [(mask, OURS, "solid")]
    if reference:
        outlines.append((on_grid(labels_of(reference), scan.grid) > 0, REFERENCE, "dashed"))
    centre = scan.grid.voxels(item["nodules"][nodule - 1]["centre_lps_mm"]).tolist()
    views = [Slice(2), *(Slice(axis, HALF_WIDTH_MM) for axis in (2, 1, 0))]
    draw_slices(Path(output), scan.image_hu, scan.affine_ras, centre, views, outlines, (12, 3))
    logger.info("%s written", output)

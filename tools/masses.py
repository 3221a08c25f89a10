"""How much of very large masses is searched: spheres of soft tissue painted into chests, one at a time.

A lung gets one at half its height at its lateral, its medial and its posterior border: inside (the centre 30 mm deep,
painted over lung only), and on the border (painted over everything in the body). All this happens on the grid of the
lung search.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from scripts.core.commands import run_function
from scripts.core.geometry import BoolArray, spacing_mm
from scripts.core.labels import Part
from scripts.core.records import SearchRegion
from scripts.evaluate.lungs import KEPT_MM, in_ras_order
from scripts.preprocess.lung_search import RELEASED, LungSearch, coarse_scan
from scripts.preprocess.lungs import find_lungs

logger = logging.getLogger(__name__)

DEPTHS_MM = {"inside": 30.0, "on the border": 0.0}
TISSUE_HU, NOISE_HU = 40.0, 20.0


def masses(*, scan_dir: str, names: Sequence[str], checkpoint: str = RELEASED, diameter_mm: float = 90.0) -> None:
    """Log how many masses are searched at their centre, and the mean share of their volume that is searched.

    Args:
        scan_dir: folder searched for the scans: ``NAME.nii.gz`` or a DICOM folder ``NAME``.
        names: whole chests.
        checkpoint: weights of the lung network.
        diameter_mm: of the masses.

    Raises:
        UserError: a scan is missing, or cannot be read, or has no lungs.
    """
    search, noise = LungSearch(checkpoint), np.random.default_rng(0)
    found: dict[str, list[tuple[bool, float]]] = {place: [] for place in DEPTHS_MM}
    for name in names:
        image_hu, affine_ras = in_ras_order(scan_dir, name)
        cells, normal = coarse_scan(image_hu, affine_ras), find_lungs(image_hu, affine_ras, search, source=name)
        for place, centre, mass in _places(normal, diameter_mm / 2.0):
            ill = cells.hu.copy()
            ill[mass] = TISSUE_HU + NOISE_HU * noise.standard_normal(int(mass.sum()))
            near = find_lungs(ill, cells.affine_ras, search, source=name).distance_mm <= KEPT_MM
            found[place].append((bool(near[centre]), float(near[mass].mean())))
    for place, results in found.items():
        centres, shares = zip(*results, strict=True)
        logger.info(
            "%s: %d of %d centres searched, and %.2f of the volume", place, sum(centres), len(centres), np.mean(shares)
        )


def _places(lungs: SearchRegion, radius_mm: float) -> Iterator[tuple[str, tuple[int, ...], BoolArray]]:
    """Yield name, centre and cells of each mass in a chest whose axes run to the right, front and head."""
    cell_mm = spacing_mm(lungs.affine_ras)
    axes = np.ogrid[tuple(slice(n) for n in lungs.parts.shape)]
    for side in (Part.LEFT_LUNG, Part.RIGHT_LUNG):
        middle = np.rint(np.argwhere(lungs.parts == side).mean(0)).astype(int)
        for axis, inwards in ((0, 1), (0, -1), (1, 1)):
            row = np.argwhere(lungs.parts[tuple(slice(None) if n == axis else m for n, m in enumerate(middle))] == side)
            for place, depth_mm in DEPTHS_MM.items():
                centre = middle.copy()
                centre[axis] = row.min() if inwards > 0 else row.max()
                centre[axis] += inwards * round(depth_mm / cell_mm[axis])
                near = sum(((x - c) * mm) ** 2 for x, c, mm in zip(axes, centre, cell_mm, strict=True)) <= radius_mm**2
                over = lungs.lungs if depth_mm else lungs.parts != Part.OUTSIDE
                yield place, tuple(centre.tolist()), near & over


if __name__ == "__main__":
    sys.exit(run_function("python -m tools.masses", masses))

"""The command ``lungs``: scores the lung search at points read by eye, and draws a contact sheet of its results."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..core.errors import UserError
from ..core.files import read_csv, replacing, writable_folder, write_csv
from ..core.geometry import FloatArray, spacing_mm
from ..core.labels import Part, is_lung
from ..core.paths import BUNDLE_ROOT
from ..core.records import LUNG_SIDES
from ..preprocess.lung_search import RELEASED, LungSearch, coarse_scan
from ..preprocess.lungs import Lungs, find_lungs
from ..read.reader import read_scan

logger = logging.getLogger(__name__)

POINT_COLUMNS = ("name", "x_lps_mm", "y_lps_mm", "z_lps_mm", "kind", "remark")
KEPT_MM = 10.0  # candidates farther than this from the lungs are dropped
SHOWN_HU = (-1100.0, 300.0)
POINTS = str(BUNDLE_ROOT / "docs" / "readings" / "lung_points.csv")
SHARES = (0.12, 0.5, 0.88)  # positions of the planes shown, as a share of the lungs' extent
SCANS_IN_ROW, INCHES, COLOURS = 2, 1.5, 160
LUNG, BODY, AIRWAY = "#ff5a5a", "#e5c100", "#35c9e0"  # colours of the outlines


def score_lungs(
    *, scan_dir: str, output_dir: str, points: str = POINTS, checkpoint: str = RELEASED, only: str = ""
) -> None:
    """Score the lung search at points read by eye, and draw what it finds.

    Args:
        scan_dir: folder searched for the scans named in points: ``NAME.nii.gz`` or a DICOM folder ``NAME``.
        output_dir: folder for points.csv (each point, and what was found there), score.csv and lungs.png.
        points: CSV with name, x_lps_mm, y_lps_mm, z_lps_mm, kind, remark.
        checkpoint: weights of the lung network; by default the released ones.
        only: only scans whose names begin with one of these words, separated by commas; default: all.

    Raises:
        UserError: no point is wanted, a scan is missing or cannot be read, or a file cannot be written.
    """
    folder = writable_folder(output_dir)
    search = LungSearch(checkpoint)
    wanted = [point for _, point in read_csv(points, POINT_COLUMNS) if point["name"].startswith(tuple(only.split(",")))]
    if not wanted:
        raise UserError(
            f"--only {only}: expected the beginning of a name in {points}, found no such point; correct it."
        )
    rows: list[tuple[Any, ...]] = []
    found: dict[str, tuple[Lungs, npt.NDArray[np.float32]]] = {}
    for name in sorted({point["name"] for point in wanted}):
        image_hu, affine_ras = in_ras_order(scan_dir, name)
        start = time.perf_counter()
        lungs = find_lungs(image_hu, affine_ras, search, source=name)
        logger.info("%s: %.2f s for %.0f Mvoxel", name, time.perf_counter() - start, image_hu.size / 1e6)
        here = [point for point in wanted if point["name"] == name]
        rows += [(*(point.get(column, "") for column in POINT_COLUMNS), *_verdict(lungs, point)) for point in here]
        found[name] = lungs, coarse_scan(image_hu, affine_ras).hu
    _draw(folder / "lungs.png", found)
    write_csv(folder / "points.csv", [(*POINT_COLUMNS, "part", "distance_mm", "right"), *rows])
    total, right = Counter(row[4] for row in rows), Counter(row[4] for row in rows if row[-1])
    score = [(kind, right[kind], total[kind]) for kind in sorted(total)]
    write_csv(folder / "score.csv", [("kind", "right", "points"), *score])
    logger.info("%s", ", ".join(f"{kind} {hits}/{points}" for kind, hits, points in score))


def is_right(kind: str, part: int, distance_mm: float) -> bool:
    """Whether the result at a point agrees with its kind.

    Lung, lesions in the lung and consolidation must be searched, that is, lie within :data:`KEPT_MM` of the lungs.
    Bowel and points outside the body must not be searched. At any other point (soft tissue, airways), every result but
    lung is right, whether it is searched or not.

    Args:
        kind: kind of the point as read.
        part: the :class:`Part` found there.
        distance_mm: distance from the lungs found.
    """
    if kind in ("lung", "lesion_in_lung", "consolidation"):
        return distance_mm <= KEPT_MM
    if kind in ("bowel", "outside"):
        return distance_mm > KEPT_MM
    return part not in (Part.LEFT_LUNG, Part.RIGHT_LUNG)


def _verdict(lungs: Lungs, point: Mapping[str, str]) -> tuple[str, float, int]:
    """Return the part found at a point, its distance from the lungs (mm), and 1 if that is right, otherwise 0."""
    part, distance_mm = lungs.at([float(point[f"{axis}_lps_mm"]) for axis in "xyz"])
    return part.name.lower(), round(distance_mm, 1), int(is_right(point["kind"], part, distance_mm))


def in_ras_order(scan_dir: str, name: str) -> tuple[npt.NDArray[np.int16], FloatArray]:
    """Return the HU and the affine of the scan of this name, with its axes in the order and direction of RAS.

    Raises:
        UserError: there is no such scan, or it cannot be read.
    """
    folders = [path for path in sorted(Path(scan_dir).rglob(name)) if path.is_dir()]
    files = [path for path in sorted(Path(scan_dir).rglob(f"{name}.nii.gz")) if "mask" not in path.parent.name]
    if not folders + files:
        raise UserError(f"scan_dir {scan_dir}: expected {name}.nii.gz or a folder {name} in it, got neither")
    return read_scan(str((folders + files)[0])).turned_to_ras()


def _draw(path: Path, found: Mapping[str, tuple[Lungs, npt.NDArray[np.float32]]]) -> None:
    """Draw a contact sheet: coronal and axial planes of each scan with the outlines of lungs, airway and body."""
    rows = -(-len(found) // SCANS_IN_ROW)
    figure = Figure(figsize=(INCHES * 2 * len(SHARES) * SCANS_IN_ROW, INCHES * rows), facecolor="#12161c")
    figure.subplots_adjust(0, 0, 1, 0.985, wspace=0.02, hspace=0.12)
    grid = figure.add_gridspec(rows, 2 * len(SHARES) * SCANS_IN_ROW)
    for number, (name, (lungs, hu)) in enumerate(found.items()):
        row, first = number // SCANS_IN_ROW, number % SCANS_IN_ROW * 2 * len(SHARES)
        for column, (axis, at) in enumerate(_planes(lungs), start=first):
            axes = figure.add_subplot(grid[row, column])
            _draw_plane(axes, lungs, hu, (slice(None),) * axis + (at,))
            if column == first:
                left_l, right_l = map(lungs.lung_volume_l, LUNG_SIDES)
                axes.set_title(
                    f"{name}: {right_l:.1f} + {left_l:.1f} l", color="#e8ecf1", fontsize=6, loc="left", pad=2
                )
    FigureCanvasAgg(figure).draw()
    sheet = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])  # type: ignore[attr-defined]
    with replacing(path) as new:
        sheet.quantize(COLOURS).save(new, "PNG", optimize=True)


def _draw_plane(axes: Axes, lungs: Lungs, hu: npt.NDArray[np.float32], plane: tuple[Any, ...]) -> None:
    cell_mm, parts = spacing_mm(lungs.affine_ras), lungs.parts[plane].T
    aspect = cell_mm[2 if len(plane) == 2 else 1] / cell_mm[0]
    axes.imshow(hu[plane].T, origin="lower", aspect=aspect, cmap="gray", vmin=SHOWN_HU[0], vmax=SHOWN_HU[1])
    for mask, colour in ((parts != Part.OUTSIDE, BODY), (parts == Part.AIRWAY, AIRWAY), (is_lung(parts), LUNG)):
        if mask.any() and not mask.all():
            axes.contour(mask, [0.5], colors=colour, linewidths=0.7)
    axes.axis("off")


def _planes(lungs: Lungs) -> Iterator[tuple[int, int]]:
    """Yield axis and index of the planes shown: coronal ones from back to front, axial ones from feet to head."""
    found = is_lung(lungs.parts)
    where = np.argwhere(found if found.any() else np.ones_like(found))
    for axis in (1, 2):
        low, high = where[:, axis].min(), where[:, axis].max()
        yield from ((axis, int(low + share * (high - low))) for share in SHARES)

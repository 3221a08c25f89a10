"""Look up what findings in whole chests were read as, draw those that nobody has read, and count the others.

A finding has the verdict of the nearest one in ``docs/readings/read_findings.csv`` within whose radius, at least 4 mm,
it lies; without one it is ``unread``. Whoever reads an unread finding in the pictures adds it to that file, and runs
the command again.
"""

from __future__ import annotations

import itertools
import logging
import sys
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import chi2

from scripts.core.commands import run_function
from scripts.core.files import read_record, writable_folder, write_bytes, write_csv, write_figure
from scripts.core.geometry import FloatArray, swap_lps_ras
from scripts.core.records import Detection, ScanResult
from scripts.evaluate.operating import draw_reliability
from scripts.metrics import calibration_of
from scripts.report.html.pictures import LUNG_WINDOW, Picture, close_ups, outline_lines

from .development import READINGS, table_rows
from .tables import table

logger = logging.getLogger(__name__)

COLUMNS = ("name", "x_lps_mm", "y_lps_mm", "z_lps_mm", "diameter_mm", "probability", "verdict")
NODULE, DOUBT, FALSE, UNREAD = "nodule", "doubt", "false", "unread"  # "false, in the lungs" and so on begin with FALSE
LEAST_RADIUS_MM = 4.0  # within which a finding is the same as one that was read
THRESHOLDS = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.9)
BINS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
INTERVAL = 0.95
FIELD_OF_VIEW_MM = 60.0
ROWS, INCHES = 6, 2.4  # findings on a page, edge of a picture

Row = dict[str, str]


def readings(results: Sequence[str], images: str, output_dir: str) -> list[Row]:
    """Write the findings with their verdicts, pictures of the unread ones, the counts and the reliability.

    Args:
        results: output folders of ``run inference``; the scans of all of them count together.
        images: the folder with the scans, ``<name>.nii.gz``.
        output_dir: receives ``findings.csv``, ``unread-1.png`` …, ``counts.md`` and ``reliability.png``.

    Returns:
        The rows of ``findings.csv``, the most probable first in each scan.

    Raises:
        FileNotFoundError: there are no results, or a scan is missing.
    """
    records = sorted(path for folder in results for path in Path(folder).glob("*/nodules.json"))
    if not records:
        raise FileNotFoundError(f"{', '.join(results)}: expected results of an inference, found none; check the path")
    known = table_rows(READINGS)
    output, pictures, rows = writable_folder(Path(output_dir)), [], []
    for path in records:
        found = list(_findings(path, known))
        rows += found
        unread = [row for row in found if row["verdict"] == UNREAD]
        pictures += list(_pictures(path.parent, Path(images), unread)) if unread else []
    write_csv(output / "findings.csv", [COLUMNS, *[[row[column] for column in COLUMNS] for row in rows]])
    for former in output.glob("unread-*.png"):
        former.unlink()
    for page in range(0, len(pictures), ROWS):
        figure = _page(pictures[page : page + ROWS])
        write_figure(output / f"unread-{page // ROWS + 1}.png", figure, metadata={"Software": None})
    counts = f"{by_threshold(rows, len(records))}\n\n{by_probability(rows)}\n"
    write_bytes(output / "counts.md", counts.encode())
    logger.info("%d findings in %d scans, %d unread\n\n%s", len(rows), len(records), len(pictures), counts)
    calibration = calibration_of(_scores(rows, NODULE), _scores(rows, FALSE))
    if calibration is not None:
        write_figure(output / "reliability.png", draw_reliability(calibration), metadata={"Software": None})
    return rows


def _findings(path: Path, known: Sequence[Row]) -> Iterator[Row]:
    """Yield the nodules of a result with their verdicts."""
    name = path.parent.name
    for nodule in read_record(path)["nodules"]:
        numbers = [*nodule["centre_lps_mm"], nodule["diameter_mm"], nodule["probability"]]
        texts = [f"{number:.{digits}f}" for number, digits in zip(numbers, (1, 1, 1, 1, 3), strict=True)]
        verdict = verdict_of(name, nodule["centre_lps_mm"], known)
        yield dict(zip(COLUMNS, [name, *texts, verdict], strict=True))


def verdict_of(name: str, centre_lps_mm: Sequence[float], known: Sequence[Row]) -> str:
    """Return the verdict of what was read nearest to a place in a scan, :data:`UNREAD` if that is too far away."""
    read = [row for row in known if row["name"] == name]
    places = np.array([[float(row[column]) for column in COLUMNS[1:5]] for row in read]).reshape(-1, 4)
    apart_mm = np.linalg.norm(places[:, :3] - centre_lps_mm, axis=1)
    apart_mm[apart_mm >= np.maximum(places[:, 3] / 2.0, LEAST_RADIUS_MM)] = np.inf
    return read[int(apart_mm.argmin())]["verdict"] if np.isfinite(apart_mm).any() else UNREAD


def by_threshold(rows: Sequence[Row], scans: int) -> str:
    """Return the counts of findings from each threshold on, as a Markdown table."""
    head = ["Threshold", "Nodules", "Doubtful", "False", "Per scan (95 % interval)"]
    lines = []
    for threshold in THRESHOLDS:
        counts = _counts(row for row in rows if float(row["probability"]) >= threshold)
        low, high = poisson_interval(counts[-1])
        rate = f"{counts[-1] / scans:.2f} ({low / scans:.2f}–{high / scans:.2f})"
        lines.append([f"{threshold:g}", *map(str, counts), rate])
    return table(head, lines)


def by_probability(rows: Sequence[Row]) -> str:
    """Return the counts of findings by probability, as a Markdown table."""
    lines = []
    for number, (low, high) in enumerate(itertools.pairwise(BINS), start=1):
        counts = _counts(row for row in rows if bisect(BINS[:-1], float(row["probability"])) == number)
        lines.append([f"{low:g}–{high:g}", *map(str, counts)])
    return table(["Probability", "Nodules", "Doubtful", "False"], lines)


def _counts(rows: Iterable[Row]) -> tuple[int, int, int]:
    """Return the numbers of nodules, doubtful and false findings."""
    kinds = [row["verdict"].split(",")[0] for row in rows]
    return kinds.count(NODULE), kinds.count(DOUBT), kinds.count(FALSE)


def poisson_interval(count: int) -> tuple[float, float]:
    """Return the exact interval (Garwood, 1936) of the mean of a Poisson variable of which one value was counted."""
    tail = (1.0 - INTERVAL) / 2.0
    return float(chi2.ppf(tail, 2 * count)) / 2.0 if count else 0.0, float(chi2.ppf(1.0 - tail, 2 * count + 2)) / 2.0


def _scores(rows: Sequence[Row], kind: str) -> FloatArray:
    return np.array([float(row["probability"]) for row in rows if row["verdict"].startswith(kind)])


def _pictures(result: Path, images: Path, rows: Sequence[Row]) -> Iterator[tuple[str, list[Picture]]]:
    """Yield a title and three planes for some findings of a scan."""
    scan, mask = (
        nibabel.as_closest_canonical(nibabel.Nifti1Image.from_filename(path))
        for path in (images / f"{result.name}.nii.gz", result / "mask.nii.gz")
    )
    shown = ScanResult(
        name=result.name,
        source=str(images),
        image_hu=np.asarray(scan.dataobj).astype(np.int16),
        affine_ras=np.asarray(scan.affine),
        mask=np.asarray(mask.dataobj).astype(np.uint16),
        nodules=(),
        candidates=(),
        outside_lungs=0,
    )
    for row in rows:
        x, y, z = swap_lps_ras([float(row[column]) for column in COLUMNS[1:4]]).tolist()
        place = Detection((x, y, z), float(row["diameter_mm"]), float(row["probability"]))
        planes = [stack.middle for stack in close_ups(shown, place, LUNG_WINDOW, FIELD_OF_VIEW_MM)]
        centre = " ".join(row[column] for column in COLUMNS[1:4])
        yield f"{row['name']}  {centre}\n{row['diameter_mm']} mm, p {row['probability']}", planes


def _page(findings: Sequence[tuple[str, list[Picture]]]) -> Figure:
    """Draw findings one below the other, each as axial, coronal and sagittal plane with the outlines of the masks."""
    figure = Figure(figsize=(3 * INCHES, len(findings) * (INCHES + 0.4)), layout="constrained")
    grid = figure.subplots(len(findings), 3, squeeze=False)
    for line, (title, planes) in zip(grid, findings, strict=True):
        line[0].set_title(title, loc="left", fontsize=7)
        for axes, plane in zip(line, planes, strict=True):
            axes.set_axis_off()
            extent = (0, plane.width_mm, plane.height_mm, 0)
            axes.imshow(plane.grey, cmap="gray", vmin=0, vmax=255, extent=extent)
            for path in (plane.outline, plane.other_outlines):
                for outline in outline_lines(path):
                    axes.plot(outline[:, 0], outline[:, 1], color="#ffb000", linewidth=0.8)
    return figure


if __name__ == "__main__":
    sys.exit(run_function("python -m tools.readings", readings))

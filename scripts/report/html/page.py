"""One self-contained page per scan: it includes its pictures and script and requests nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.files import write_bytes
from ...core.geometry import slice_axis, spacing_mm
from ...core.records import LUNG_SIDES, Detection, Nodule, ScanResult, SearchRegion, centre_voxels
from ..base import Writer
from ..tables import published_source
from .overview import lungs_picture, overview
from .pictures import LUNG_WINDOW, Stack, close_ups
from .render import render_page

# Least field of view of a close-up; for a large nodule it is three times its diameter.
CLOSE_UP_MM = 60.0
# Pictures per view to scroll through: fewer if there are many nodules, so that a report stays within a few megabytes.
_PICTURES = 21
_FEWEST_PICTURES = 7
_PICTURES_OF_ALL = 210
# An adult's lungs hold one to four litres each, the left a little less than the right; children's hold less.
LARGEST_LUNG_L, SMALLEST_LUNG_L, LEAST_RATIO = 6.0, 0.4, 0.4
# More lung than this on the first or last plane is more than an apex or a recess.
CUT_MM2 = 1000.0
# Steps of the threshold on the page.
_STEP = 0.01


@dataclass(frozen=True)
class PageEntry:
    """What the page shows at one position: a nodule with a mask, or a weaker candidate without one.

    Attributes:
        number: the nodule's label; the numbers of weaker candidates continue from there.
        detection: position, size and probability.
        nodule: ``None`` for a weaker candidate.
        slice_number: the axial slice nearest to its centre, as :class:`AxialSlices` counts.
        mark_mm: its centre on the overview, in mm from the picture's left and upper border.
    """

    number: int
    detection: Detection
    nodule: Nodule | None
    slice_number: int
    mark_mm: tuple[float, float]

    @property
    def size_mm(self) -> float:
        """The long axis if it was measured, else the diameter predicted by the network."""
        measured = self.nodule.measurement if self.nodule else None
        return measured.long_axis_mm if measured else self.detection.diameter_mm


class HtmlReport(Writer):
    """Write ``report.html``: a summary, a table, an overview, and close-ups to scroll through.

    Args:
        weaker_findings: number of candidates below the operating threshold that the page can show on demand.
        smallest_tested_mm: diameter of the smallest nodules the model was tested with.
        date: shown as the day of the report; ``None`` for today (UTC).
    """

    filename = "report.html"

    def __init__(self, *, weaker_findings: int = 20, smallest_tested_mm: float = 3.0, date: str | None = None) -> None:
        self.weaker_findings, self.smallest_tested_mm, self.date = weaker_findings, smallest_tested_mm, date

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; the page of a scan without nodules says so and shows the overview.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_bytes(folder / self.filename, self.render(result).encode())

    def render(self, result: ScanResult) -> str:
        """Return the page as text."""
        axial, whole = AxialSlices.of(result), overview(result)
        threshold = result.settings.get("threshold")
        weaker = weaker_candidates(result, threshold or 0.0)

        def entry(number: int, detection: Detection, nodule: Nodule | None = None) -> PageEntry:
            centre = nodule.centre_voxel if nodule else centre_voxels([detection], result.affine_ras)[0]
            position_mm = whole.position_mm(detection.centre_ras_mm)
            return PageEntry(number, detection, nodule, axial.number(centre), position_mm)

        found = [entry(nodule.label, nodule.detection, nodule) for nodule in result.nodules]
        found.sort(key=lambda one: -one.detection.probability)
        first = max((one.number for one in found), default=0) + 1
        shown = [entry(number, one) for number, one in enumerate(weaker[: self.weaker_findings], start=first)]

        def stacks(one: PageEntry) -> tuple[Stack, Stack, Stack]:
            """Draw one entry when asked, so that few pictures are in memory; a weaker candidate has one per view."""
            label, pictures = (one.number, pictures_per_view(len(found))) if one.nodule else (0, 1)
            sizes: dict[str, Any] = {"label": label, "pictures": pictures, "long_axis_mm": one.size_mm}
            return close_ups(result, one.detection, LUNG_WINDOW, CLOSE_UP_MM, **sizes)

        return render_page(
            "report",
            result=result,
            source=published_source(result),
            date=self.date or datetime.now(UTC).date().isoformat(),
            smallest_tested_mm=self.smallest_tested_mm,
            threshold=threshold,
            lowest=_lowest(threshold, shown or found),
            lung_warnings=[] if result.region is None else lung_warnings(result.region),
            spacing_mm=spacing_mm(result.affine_ras),
            settings={name: _shown(value) for name, value in result.settings.items() if name != "threshold"},
            axial=axial,
            window=LUNG_WINDOW,
            found=found,
            weaker=shown,
            weaker_count=len(weaker),
            overview=whole,
            lungs=lungs_picture(result, LUNG_WINDOW),
            stacks=stacks,
        )


@dataclass(frozen=True)
class AxialSlices:
    """How slices are counted: from 0 along the scan's own array axis that runs most nearly from feet to head.

    Attributes:
        axis: 0, 1 or 2.
        count: number of slices.
        first: "feet" or "head", the end at which slice 0 lies.
    """

    axis: int
    count: int
    first: str

    @classmethod
    def of(cls, result: ScanResult) -> AxialSlices:
        axis = slice_axis(result.affine_ras)
        return cls(axis, result.image_hu.shape[axis], "feet" if result.affine_ras[2][axis] > 0 else "head")

    def number(self, voxel: npt.ArrayLike) -> int:
        """Return the slice nearest to a voxel position on the scan's own grid, counted from 0."""
        return min(max(round(float(np.asarray(voxel)[self.axis])), 0), self.count - 1)


def pictures_per_view(nodules: int) -> int:
    """Return the number of pictures in a stack: odd, and smaller if there are many nodules."""
    each = min(_PICTURES, max(_FEWEST_PICTURES, _PICTURES_OF_ALL // max(nodules, 1)))
    return each - 1 + each % 2


def weaker_candidates(result: ScanResult, threshold: float) -> list[Detection]:
    """Return candidates below the operating threshold outside all nodules' masks, the most probable first."""
    weaker = sorted((one for one in result.candidates if one.probability < threshold), key=lambda c: -c.probability)
    nearest = np.rint(centre_voxels(weaker, result.affine_ras)).astype(int)
    i, j, k = np.clip(nearest, 0, np.array(result.mask.shape) - 1).T
    return [one for one, label in zip(weaker, result.mask[i, j, k].tolist(), strict=True) if not label]


def _lowest(threshold: float | None, entries: Sequence[PageEntry]) -> float:
    """Return the page's lowest threshold: whole steps below the operating one, just low enough for all entries."""
    least = min((entry.detection.probability for entry in entries), default=threshold or 0.0)
    start = least if threshold is None else threshold
    steps = int(np.ceil(max(start - least, 0.0) / _STEP))
    return max(start - steps * _STEP, 0.0)


def lung_warnings(region: SearchRegion) -> list[str]:
    """Return warnings about the lungs that were found: unusual volumes, or lungs that are cut off by the scan."""
    if not region.lungs_found:
        return []
    left_l, right_l = map(region.lung_volume_l, LUNG_SIDES)
    small_l, large_l = sorted((left_l, right_l))
    warnings = []
    if large_l > LARGEST_LUNG_L or small_l < SMALLEST_LUNG_L or small_l < LEAST_RATIO * large_l:
        warnings.append(
            f"The lungs measure {right_l:.1f} l (right) and {left_l:.1f} l (left), which is unusual. "
            "Check their outline below: parts of them may not have been searched."
        )
    area_mm2 = region.lungs.sum(axis=(0, 1)) * np.prod(spacing_mm(region.affine_ras)[:2])  # of planes from feet to head
    cut = [end for end, k in (("top", -1), ("bottom", 0)) if area_mm2[k] > CUT_MM2]
    if cut:
        ends = " and the ".join(cut)
        warnings.append(f"The scan cuts off the lungs at the {ends}; what lies beyond was not searched.")
    return warnings


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Iterable) and not isinstance(value, str | dict):
        return " × ".join(map(_shown, value))
    return str(value)

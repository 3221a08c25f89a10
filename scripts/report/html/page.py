"""One self-contained page per scan: pictures and script inside, no request to anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...core.files import write_bytes
from ...core.geometry import FloatArray, apply_affine, spacing_mm
from ...core.records import Detection, Nodule, ScanResult, SearchRegion, Side
from ..tables import published_source
from .overview import lungs_picture, overview
from .pictures import LUNG_WINDOW, Stack, close_ups
from .render import render_page, shown_probability

# Radius of the smallest mark on the overview: smaller circles are hard to see.
_MIN_MARK_MM = 5.0
# Least field of view of a close-up; a large nodule gets three times its diameter.
CLOSE_UP_MM = 60.0
# Pictures per view to scroll through. A report of many findings has fewer each, so that it stays a few megabytes.
_PICTURES = 21
_FEWEST_PICTURES = 7
_PICTURES_OF_ALL = 210
# Lungs of an adult hold one to four litres each, the left a little less; children's hold less.
LARGEST_LUNG_L, SMALLEST_LUNG_L, LEAST_RATIO = 6.0, 0.4, 0.4
# More lung than this on the first or last plane is not just an apex or a recess.
CUT_MM2 = 1000.0
_REGION_NOTES = {
    "cut-out": (
        "This volume is cut out of a chest, so nobody can say where its lungs end. What lies within 25 mm of aerated "
        "lung was searched."
    ),
    "body": "All that is inside the body was searched, not the lungs alone. Outside them most findings are false.",
}
# Steps of the threshold on the page.
_STEP = 0.01


@dataclass(frozen=True)
class Finding:
    """What the page shows of one position: an outlined nodule, or a weaker candidate that has no outline.

    Attributes:
        number: the nodule's label; weaker candidates go on counting.
        detection: where, how large, how sure.
        nodule: ``None`` for a weaker candidate.
        slice_number: the axial slice nearest to its centre, as :class:`AxialSlices` counts.
        mark_mm: its centre on the overview, mm from the picture's left and upper border.
    """

    number: int
    detection: Detection
    nodule: Nodule | None
    slice_number: int
    mark_mm: tuple[float, float]

    @property
    def mark_radius_mm(self) -> float:
        return max(self.detection.diameter_mm / 2 + 2, _MIN_MARK_MM)

    @property
    def size_mm(self) -> float:
        """Long axis where it is measured, else the network's estimate."""
        measured = self.nodule.measurement if self.nodule else None
        return measured.long_axis_mm if measured else self.detection.diameter_mm


class HtmlReport:
    """Write ``report.html``: what was found, a table, an overview and close-ups to scroll through.

    Args:
        weaker_findings: how many candidates below the operating threshold the page can show on demand.
        smallest_tested_mm: diameter of the smallest nodules the model was tested with.
        date: shown as the day of the report; ``None`` for today (UTC).
    """

    filename = "report.html"

    def __init__(self, *, weaker_findings: int = 20, smallest_tested_mm: float = 3.0, date: str | None = None) -> None:
        self.weaker_findings, self.smallest_tested_mm, self.date = weaker_findings, smallest_tested_mm, date

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules says so and shows the overview.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_bytes(folder / self.filename, self.render(result).encode())

    def render(self, result: ScanResult) -> str:
        """The page as text."""
        axial, whole, to_voxel = AxialSlices.of(result), overview(result), _to_voxel(result)

        def finding(number: int, detection: Detection, nodule: Nodule | None = None) -> Finding:
            centre = apply_affine(to_voxel, detection.centre_ras_mm) if nodule is None else nodule.centre_voxel
            return Finding(number, detection, nodule, axial.number(centre), whole.position_mm(detection.centre_ras_mm))

        found = [finding(nodule.label, nodule.detection, nodule) for nodule in result.nodules]
        found.sort(key=lambda one: -one.detection.probability)
        weaker = weaker_candidates(result)
        first = max((one.number for one in found), default=0) + 1
        shown = [finding(number, one) for number, one in enumerate(weaker[: self.weaker_findings], start=first)]
        return render_page(
            "report",
            result=result,
            source=published_source(result),
            date=self.date or datetime.now(UTC).date().isoformat(),
            smallest_tested_mm=self.smallest_tested_mm,
            threshold=_threshold(result),
            lowest=_lowest(_threshold(result), shown or found),
            summary=summary_sentence(result),
            key_figures=key_figures(found, shown),
            notes=[*_search_notes(result), *result.notes],
            facts={**_geometry(result), **result.facts},
            settings={name: _shown(value) for name, value in result.settings.items() if name != "threshold"},
            axial=axial,
            window=LUNG_WINDOW,
            found=found,
            weaker=shown,
            weaker_count=len(weaker),
            overview=whole,
            lungs=lungs_picture(result, LUNG_WINDOW),
            lung_litres=_lung_litres(result),
            marks=sorted([*found, *shown], key=lambda one: one.detection.probability),  # the surest one on top
            close_ups=self._close_ups(result, found, shown),
        )

    def _close_ups(
        self, result: ScanResult, found: Sequence[Finding], weaker: Sequence[Finding]
    ) -> Iterator[tuple[Finding, tuple[Stack, Stack, Stack]]]:
        """One finding after the other, so that few pictures are in memory; weaker ones have no slices to scroll."""
        each = pictures_per_view(len(found))
        for finding in (*found, *weaker):
            label, pictures = (finding.number, each) if finding.nodule else (0, 1)
            stacks = close_ups(
                *(result, finding.detection, LUNG_WINDOW, CLOSE_UP_MM),
                label=label,
                long_axis_mm=finding.size_mm,
                pictures=pictures,
            )
            yield finding, stacks


@dataclass(frozen=True)
class AxialSlices:
    """How slices are counted: along the scan's own array axis that runs most nearly from feet to head, from 0.

    Attributes:
        axis: 0, 1 or 2.
        count: number of slices.
        first: "feet" or "head", where slice 0 lies.
    """

    axis: int
    count: int
    first: str

    @classmethod
    def of(cls, result: ScanResult) -> AxialSlices:
        upward = np.asarray(result.affine_ras, dtype=np.float64)[2, :3] / spacing_mm(result.affine_ras)
        axis = int(np.abs(upward).argmax())
        return cls(axis, result.image_hu.shape[axis], "feet" if upward[axis] > 0 else "head")

    @property
    def axis_name(self) -> str:
        return "ijk"[self.axis]

    def number(self, voxel: npt.ArrayLike) -> int:
        """The slice nearest to a position in the scan's own grid, counted from 0."""
        return min(max(round(float(np.asarray(voxel)[self.axis])), 0), self.count - 1)


def pictures_per_view(findings: int) -> int:
    """How many pictures a stack has: an odd number, smaller where there are many findings."""
    each = min(_PICTURES, max(_FEWEST_PICTURES, _PICTURES_OF_ALL // max(findings, 1)))
    return each - 1 + each % 2


def weaker_candidates(result: ScanResult) -> list[Detection]:
    """Candidates below the operating threshold that lie in no nodule's outline, by falling probability."""
    threshold = _threshold(result) or 0.0
    weaker = sorted((one for one in result.candidates if one.probability < threshold), key=lambda c: -c.probability)
    centres = apply_affine(_to_voxel(result), np.reshape([one.centre_ras_mm for one in weaker], (-1, 3)))
    i, j, k = np.clip(np.rint(centres).astype(int), 0, np.array(result.mask.shape) - 1).T
    return [one for one, label in zip(weaker, result.mask[i, j, k].tolist(), strict=True) if not label]


def _to_voxel(result: ScanResult) -> FloatArray:
    """``[4, 4]``, RAS mm to voxel."""
    return np.asarray(np.linalg.inv(np.asarray(result.affine_ras, dtype=np.float64)))


def summary_sentence(result: ScanResult) -> str:
    """What was found, below the number of nodules; no nodule is said as what it is."""
    threshold = _threshold(result)
    at = "the operating threshold" if threshold is None else f"the operating threshold of {threshold:g}"
    if not result.nodules:
        return f"Nothing reached {at}. This does not mean that there is no nodule."
    surest = max(result.nodules, key=lambda nodule: nodule.detection.probability)
    measured, place = surest.measurement, surest.location
    size = (
        f"{measured.long_axis_mm:.1f}\u00a0×\u00a0{measured.short_axis_mm:.1f}\u00a0mm"
        if measured
        else f"about {surest.detection.diameter_mm:.1f}\u00a0mm"
    )
    lung = f" in the {place.side} lung, {place.level} third" if place else ""
    subject = "It" if len(result.nodules) == 1 else f"The most probable, number {surest.label},"
    return f"At {at}. {subject} measures {size}{lung}."


def key_figures(found: Sequence[Finding], weaker: Sequence[Finding]) -> list[tuple[str, str, str]]:
    """Name, value and remark of what a reader wants to know first."""
    if not found:
        return [("Highest probability below it", shown_probability(w.detection.probability), "") for w in weaker[:1]]
    largest = max(found, key=lambda finding: finding.size_mm)
    return [
        ("Highest probability", shown_probability(found[0].detection.probability), f"number {found[0].number}"),
        ("Largest", f"{largest.size_mm:.1f} mm", f"number {largest.number}"),
    ]


def _threshold(result: ScanResult) -> float | None:
    threshold = result.settings.get("threshold")
    return None if threshold is None else float(threshold)


def _lowest(threshold: float | None, findings: Sequence[Finding]) -> float:
    """Where the page's threshold ends: a whole number of steps below the operating one, as low as findings reach."""
    least = min((finding.detection.probability for finding in findings), default=threshold or 0.0)
    start = least if threshold is None else threshold
    steps = int(np.ceil(max(start - least, 0.0) / _STEP))
    return max(start - steps * _STEP, 0.0)


def _search_notes(result: ScanResult) -> list[str]:
    notes = []
    if result.region is not None:
        notes += lung_warnings(result.region)
        if result.region.kind in _REGION_NOTES:
            notes.append(_REGION_NOTES[result.region.kind])
    if result.outside_lungs:
        one = result.outside_lungs == 1
        notes.append(f"{result.outside_lungs} candidate{' was' if one else 's were'} dropped outside the lungs.")
    return notes


def _lung_litres(result: ScanResult) -> str:
    """Volumes of both lungs in words; empty where none were outlined."""
    if result.region is None or not result.region.lungs_found:
        return ""
    return f"{result.region.lung_volume_l('right'):.2f} l right, {result.region.lung_volume_l('left'):.2f} l left"


def lung_warnings(region: SearchRegion) -> list[str]:
    """What is odd about the lungs as they were found: their volumes, or that the scan cuts them."""
    if not region.lungs_found:
        return []
    litres: dict[Side, float] = {side: region.lung_volume_l(side) for side in ("left", "right")}
    small, large = sorted(litres, key=lambda side: litres[side])
    warnings = []
    if litres[large] > LARGEST_LUNG_L or litres[small] < SMALLEST_LUNG_L or litres[small] < LEAST_RATIO * litres[large]:
        warnings.append(
            f"The lungs measure {litres['right']:.1f} l (right) and {litres['left']:.1f} l (left), which is unusual. "
            "Check their outline: parts may not have been searched."
        )
    ends = {"top": -1, "bottom": 0}
    cut = [end for end, k in ends.items() if _cut_mm2(region, k) > CUT_MM2]
    if cut:
        warnings.append(f"The lungs are cut at the {' and the '.join(cut)} of the scan; what lies beyond was not seen.")
    return warnings


def _cut_mm2(region: SearchRegion, k: int) -> float:
    """Area of lung on the first or last plane of the region's grid, which runs from feet to head."""
    plane = region.lung("left")[:, :, k] | region.lung("right")[:, :, k]
    return float(plane.sum() * np.prod(spacing_mm(region.affine_ras)[:2]))


def _geometry(result: ScanResult) -> dict[str, str]:
    sizes = " × ".join(str(size) for size in result.image_hu.shape)
    spacings = " × ".join(f"{value:.3g}" for value in spacing_mm(result.affine_ras))
    return {"Size": sizes, "Spacing": f"{spacings} mm"}


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, dict):
        return " × ".join(_shown(item) for item in value)
    return str(value)

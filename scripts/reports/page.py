"""One self-contained page per scan: pictures inline, no script, no request to anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ..findings import Nodule, ScanResult
from ..geometry import spacing_mm
from .files import write_bytes
from .pictures import Picture, View, Window, close_ups, overview_position_mm, overviews
from .tables import source_name

# Radius of the smallest mark on the overview: smaller circles are hard to see.
_MIN_MARK_MM = 6.0


@dataclass(frozen=True)
class Mark:
    """A nodule on the overview: centre and radius in mm from the picture's upper left corner."""

    label: int
    x_mm: float
    y_mm: float
    radius_mm: float


class HtmlReport:
    """Write ``report.html``: facts, a table of the nodules, an overview and three close-ups of each nodule.

    Args:
        window_centre_hu: middle of the HU range shown in the close-ups; lung: -600.
        window_width_hu: its width; lung: 1500.
        close_up_mm: least field of view of a close-up; a large nodule gets three times its diameter.
        date: shown as the day of the report; ``None`` for today (UTC).

    Raises:
        ValueError: the window or the field of view is not positive.
    """

    filename = "report.html"

    def __init__(
        self,
        window_centre_hu: float = -600.0,
        window_width_hu: float = 1500.0,
        close_up_mm: float = 60.0,
        date: str | None = None,
    ) -> None:
        if not close_up_mm > 0:
            raise ValueError(f"Expected close-ups wider than 0 mm, got {close_up_mm}. A useful width is 60.")
        self.window = Window(window_centre_hu, window_width_hu)
        self.close_up_mm = close_up_mm
        self.date = date

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules says so and shows the overview.

        Raises:
            OutputError: the file cannot be written.
        """
        return write_bytes(folder / self.filename, self.render(result).encode())

    def render(self, result: ScanResult) -> str:
        """The page as text."""
        nodules = sorted(result.nodules, key=lambda nodule: -nodule.detection.probability)
        return _template().render(
            result=result,
            source=source_name(result.source),
            date=self.date or datetime.now(UTC).date().isoformat(),
            summary=summary_sentence(result),
            notes=[*_search_notes(result), *result.notes],
            facts={**_geometry(result), **result.facts},
            model={f"Model {name.replace('_', ' ')}": value for name, value in result.model.items()},
            settings={name: _shown(value) for name, value in result.settings.items()},
            axial=AxialSlices.of(result),
            window=self.window,
            nodules=nodules,
            overviews=[(picture, _marks(result, picture.view, nodules)) for picture in overviews(result)],
            close_ups=(self._close_ups(result, nodule) for nodule in nodules),
        )

    def _close_ups(self, result: ScanResult, nodule: Nodule) -> tuple[Nodule, tuple[Picture, ...]]:
        return nodule, close_ups(result, nodule, self.window, self.close_up_mm)


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

    def number(self, nodule: Nodule) -> int:
        """The slice nearest to the nodule's centre, counted from 0."""
        return min(max(round(nodule.centre_voxel[self.axis]), 0), self.count - 1)


def summary_sentence(result: ScanResult) -> str:
    """What was found, in one sentence; no nodule is said as what it is."""
    count = len(result.nodules)
    threshold = result.settings.get("threshold")
    at = "the operating threshold" if threshold is None else f"the operating threshold of {_shown(threshold)}"
    if count == 0:
        return f"No nodule reached {at}. This does not mean that there is none."
    surest = max(result.nodules, key=lambda nodule: nodule.detection.probability).detection
    subject = "One possible nodule reaches" if count == 1 else f"{count} possible nodules reach"
    most = "it" if count == 1 else "the most probable"
    return (
        f"{subject} {at}; {most} measures {surest.diameter_mm:.1f} mm across "
        f"and has a probability of {shown_probability(surest.probability)}."
    )


def shown_probability(probability: float) -> str:
    """Two decimals, but never the certainty of 1.00 or 0.00 that rounding would make."""
    if probability > 0.994:
        return "> 0.99"
    return f"{probability:.2f}" if probability >= 0.005 else "< 0.01"


def _search_notes(result: ScanResult) -> list[str]:
    notes = []
    if not result.lungs_found:
        notes.append("No closed lung was found in this volume, so all of it was searched, body wall included.")
    if result.outside_lungs:
        one = result.outside_lungs == 1
        notes.append(f"{result.outside_lungs} candidate{' was' if one else 's were'} dropped outside the lungs.")
    return notes


def _geometry(result: ScanResult) -> dict[str, str]:
    sizes = " × ".join(str(size) for size in result.image_hu.shape)
    spacings = " × ".join(f"{value:.3g}" for value in spacing_mm(result.affine_ras))
    return {"Size": sizes, "Spacing": f"{spacings} mm"}


def _marks(result: ScanResult, view: View, nodules: Sequence[Nodule]) -> list[Mark]:
    """Circles for the overview, the most probable nodule last and so on top."""
    marks = []
    for nodule in reversed(nodules):
        x_mm, y_mm = overview_position_mm(result, view, nodule.detection.centre_ras_mm)
        radius_mm = max(nodule.detection.diameter_mm / 2 + 2, _MIN_MARK_MM)
        marks.append(Mark(nodule.label, x_mm, y_mm, radius_mm))
    return marks


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Iterable) and not isinstance(value, dict):
        return " × ".join(_shown(item) for item in value)
    return str(value)


def _number(value: float, decimals: int = 1) -> str:
    """For the reader: with a minus sign that can be seen, and never "−0.0"."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")


def _plain_number(value: float, decimals: int = 2) -> str:
    """For SVG and CSS."""
    return f"{value:.{decimals}f}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["plain"] = _plain_number
    environment.filters["probability"] = shown_probability
    return environment.get_template("page.html.j2")

"""Draws the worst cases of an evaluation: nodules below the operating threshold, and false findings above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import numpy.typing as npt
from ignite.engine import Engine, Events
from matplotlib.figure import Figure
from scipy import ndimage

from ..core.files import writable_folder, write_figure
from ..core.geometry import FloatArray, apply_affine
from ..metrics import ScoredScan

HALF_WIDTH_MM = 20  # of a picture
COLUMNS = 4
SAME_PLACE_MM, SAME_PICTURE = 4.0, 0.05  # limits within which two cases are the same finding in copies of a scan
BACKGROUND = -1.0  # outside the scan: the lowest value of the network's input


@dataclass(frozen=True)
class Case:
    """One missed nodule or false finding.

    Attributes:
        title: diameter (for a miss) and probability, as text.
        badness: sort key; the highest come first.
        centre_ras_mm: ``[3]`` centre of the finding.
        picture: ``[2, 2 h + 1, 2 h + 1]`` axial and coronal slice, rows from top to bottom, h = :data:`HALF_WIDTH_MM`.
    """

    title: str
    badness: float
    centre_ras_mm: FloatArray
    picture: npt.NDArray[np.float32]

    def shows(self, other: Case) -> bool:
        """Whether another case is the same finding, in a copy of the scan."""
        apart_mm = np.linalg.norm(self.centre_ras_mm - other.centre_ras_mm)
        return bool(apart_mm < SAME_PLACE_MM and np.abs(self.picture - other.picture).mean() < SAME_PICTURE)


class WorstCases:
    """Ignite handler that writes ``misses.png`` and ``false_findings.png`` when an evaluation is complete.

    Misses are nodules that no candidate at or above the threshold hits, the largest first; false findings are
    candidates at or above the threshold that hit no annotation, the most probable first. No file is written for a kind
    without cases.

    Args:
        output_dir: folder for the pictures.
        threshold: the operating threshold, a probability.
        most: largest number of cases of each kind.
    """

    def __init__(self, output_dir: str, *, threshold: float, most: int = 12) -> None:
        self.folder, self.threshold, self.most = Path(output_dir), threshold, most
        self._seen: list[tuple[str, Case]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda _: self._seen.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self._draw)

    def _keep(self, engine: Engine) -> None:
        state: Any = engine.state
        for batch, output in zip(state.batch, state.output, strict=True):
            for kind, cases in _cases_of({**batch, **output}, self.threshold).items():
                self._seen += [(kind, case) for case in worst_of(cases, self.most)]

    def _draw(self, _: Engine) -> None:
        seen: Any = idist.all_gather(self._seen) if idist.get_world_size() > 1 else [self._seen]
        for kind in ("misses", "false_findings"):
            cases = worst_of([case for part in seen for named, case in part if named == kind], self.most)
            if cases and idist.get_rank() == 0:
                path = writable_folder(self.folder) / f"{kind}.png"
                write_figure(path, draw_cases(cases), metadata={"Software": None})


def worst_of(cases: Sequence[Case], most: int) -> list[Case]:
    """Return the worst cases, without repeating a finding; the result does not depend on the order of ``cases``."""
    kept: list[Case] = []
    for case in sorted(cases, key=lambda case: (-case.badness, *case.centre_ras_mm.tolist())):
        if len(kept) < most and not any(case.shows(other) for other in kept):
            kept.append(case)
    return kept


def _cases_of(item: Mapping[str, Any], threshold: float) -> dict[str, list[Case]]:
    """Return the misses and false findings of one scan, from its item after post-processing."""
    scored: ScoredScan = item["pred"]
    candidates, truth = scored
    image, affine = np.asarray(item["image"][0], dtype=np.float32), np.asarray(item["image"].affine, dtype=np.float64)
    centres, hits = scored.centres_ras_mm(), scored.hits()
    scores = np.array([c.probability for c in candidates], dtype=np.float64)
    best = np.where(hits, scores[:, None], 0.0).max(axis=0, initial=0.0)
    misses = [
        Case(f"{diameter:.1f} mm, p {p:.2f}", float(diameter), centre, _picture(image, affine, centre))
        for centre, diameter, p, wanted in zip(
            truth.centres_ras_mm, truth.diameters_mm, best, truth.is_nodule, strict=True
        )
        if wanted and p < threshold
    ]
    false = [
        Case(f"p {p:.2f}", float(p), centre, _picture(image, affine, centre))
        for centre, p, hit in zip(centres, scores, np.any(hits, axis=1), strict=True)
        if not hit and p >= threshold
    ]
    return {"misses": misses, "false_findings": false}


def _picture(image: npt.NDArray[np.float32], affine: FloatArray, centre_ras_mm: FloatArray) -> npt.NDArray[np.float32]:
    """Return the axial and coronal slices through a position of a 1 mm RAS volume, in radiological orientation."""
    middle, h = np.rint(apply_affine(np.linalg.inv(affine), centre_ras_mm)), HALF_WIDTH_MM
    size = (2 * h + 1,) * 3
    part = ndimage.affine_transform(image, np.ones(3), middle - h, size, order=0, mode="constant", cval=BACKGROUND)
    return np.stack([part[::-1, ::-1, h].T, part[::-1, h, ::-1].T])


def draw_cases(cases: Sequence[Case]) -> Figure:
    """Draw a grid of cases, each with its axial beside its coronal slice."""
    rows = -(-len(cases) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.0 * rows), dpi=90, layout="constrained", facecolor="white")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, case in zip(grid, cases, strict=False):
        axes.imshow(np.concatenate(list(case.picture), axis=1), cmap="gray", vmin=-1, vmax=0.6)
        axes.set_title(case.title, fontsize=9)
    return figure

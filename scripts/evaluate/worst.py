"""The worst cases of an evaluation as pictures: nodules below the threshold, false findings above it."""

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
SAME_PLACE_MM, SAME_PICTURE = 4.0, 0.05  # copies of one scan show a finding more than once; one picture is enough
BACKGROUND = -1.0  # beyond the scan: the darkest value of the network's input


@dataclass(frozen=True)
class Case:
    """One miss or false finding.

    Attributes:
        title: what it is.
        badness: the worst come first.
        centre_ras_mm: of the finding.
        picture: ``[2, 2 h + 1, 2 h + 1]``: the axial and the coronal slice, first axis down.
    """

    title: str
    badness: float
    centre_ras_mm: FloatArray
    picture: npt.NDArray[np.float32]

    def shows(self, other: Case) -> bool:
        """Whether the other is the same finding in a copy of the scan."""
        apart_mm = np.linalg.norm(self.centre_ras_mm - other.centre_ras_mm)
        return bool(apart_mm < SAME_PLACE_MM and np.abs(self.picture - other.picture).mean() < SAME_PICTURE)


class WorstCases:
    """Write ``misses.png`` and ``false_findings.png`` of an evaluation.

    Misses are nodules without a candidate from the threshold on, the largest first; false findings are the strongest
    candidates from the threshold on that lie in no finding. A kind without cases has no file.

    Args:
        output_dir: gets the pictures.
        threshold: the operating threshold, a probability.
        most: pictures of each kind.
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
    """The worst cases, in an order of their own whatever the order they come in; what one shows another does not."""
    kept: list[Case] = []
    for case in sorted(cases, key=lambda case: (-case.badness, *case.centre_ras_mm.tolist())):
        if len(kept) < most and not any(case.shows(other) for other in kept):
            kept.append(case)
    return kept


def _cases_of(item: Mapping[str, Any], threshold: float) -> dict[str, list[Case]]:
    """The misses and false findings of one scan, as the graph's post-processing left it."""
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
    """The axial and the coronal slice through a position of a RAS volume of 1 mm, as radiologists look at them."""
    middle, h = np.rint(apply_affine(np.linalg.inv(affine), centre_ras_mm)), HALF_WIDTH_MM
    size = (2 * h + 1,) * 3
    part = ndimage.affine_transform(image, np.ones(3), middle - h, size, order=0, mode="constant", cval=BACKGROUND)
    return np.stack([part[::-1, ::-1, h].T, part[::-1, h, ::-1].T])


def draw_cases(cases: Sequence[Case]) -> Figure:
    """A grid of cases, axial beside coronal."""
    rows = -(-len(cases) // COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.0 * rows), dpi=90, layout="constrained", facecolor="white")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, case in zip(grid, cases, strict=False):
        axes.imshow(np.concatenate(list(case.picture), axis=1), cmap="gray", vmin=-1, vmax=0.6)
        axes.set_title(case.title, fontsize=9)
    return figure

"""LIDC's XML files become readings: what one reader saw in one series.

Sources: Armato SG III et al., Medical Physics 38:915-931, 2011, doi:10.1118/1.3528204, and the annotated XML example
that The Cancer Imaging Archive gives with LIDC-IDRI ("annotated XML file", March 2010):

- Each CT was read twice by four readers; the file holds the second, unblinded session alone. Readers are anonymous: the
  first of one file need not be the first of another.
- A nodule of 3 to 30 mm has an outline in each of its slices and nine ratings. A nodule below 3 mm, and a lesion of at
  least 3 mm that is no nodule, have one point and no ratings (or nine zeros).
- An outline is the "outer border": its own pixels lie just outside the nodule, of inclusions and of exclusions (a
  cavity) alike.
- ``xCoord`` is the column, ``yCoord`` the row, both from 0; ``imageSOP_UID`` names the slice.

Rules of our own: an outline is a nodule >= 3 mm when it has more than one point, rated or not (two outlines of the
1018 series lack ratings); a rating of 0 is none.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from xml.parsers import expat

import numpy as np
import numpy.typing as npt
from matplotlib.path import Path
from scipy import ndimage

from ..datalists import PrepareError

RATINGS = (
    *("subtlety", "internalStructure", "calcification", "sphericity", "margin"),
    *("lobulation", "spiculation", "texture", "malignancy"),
)

SMALL_NODULE, NON_NODULE = "nodule < 3 mm", "non-nodule"

Pixels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class LidcError(PrepareError):
    """Readings, or a scan with its readings, that cannot be used."""


@dataclass(frozen=True)
class Frame:
    """Where the pixels of a region lie, as one frame of a DICOM Segmentation says.

    Attributes:
        position_lps_mm: of the first pixel.
        orientation: direction cosines (LPS) along a row, then along a column.
        size: columns, rows.
    """

    position_lps_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Region:
    """What one reader's nodule covers of one slice.

    Attributes:
        sop_uid: SOPInstanceUID of the slice; "" where the source does not say: then ``z_mm`` tells.
        z_mm: z of the slice's position, LPS.
        corner: ``[2]`` column and row of ``inside[0, 0]``; of the border's first ones where nothing is inside.
        inside: ``[I, J]`` bool, no larger than needed; ``[0, 0]``: a border of few points encloses no pixel.
        border: ``[N, 2]`` columns and rows of the pixels just outside, N >= 1.
        frame: where the pixels lie; ``None`` where the source gives columns and rows alone.
    """

    sop_uid: str
    z_mm: float
    corner: Pixels
    inside: Mask
    border: Pixels
    frame: Frame | None = None


@dataclass(frozen=True)
class Reading:
    """One reader's nodule of at least 3 mm.

    Attributes:
        reader: 1, 2, … within the series.
        name: what the source calls it; not unique.
        regions: at least one, one per slice.
        ratings: some or all of :data:`RATINGS`, 1 to 5 (calcification to 6).
    """

    reader: int
    name: str
    regions: tuple[Region, ...]
    ratings: dict[str, int]


@dataclass(frozen=True)
class Mark:
    """One reader's point: a nodule below 3 mm, or a lesion that is no nodule.

    Attributes:
        reader: 1, 2, … within the series.
        kind: :data:`SMALL_NODULE` or :data:`NON_NODULE`.
        sop_uid: SOPInstanceUID of the slice.
        z_mm: z of the slice's position, LPS.
        pixel: column and row.
    """

    reader: int
    kind: str
    sop_uid: str
    z_mm: float
    pixel: tuple[int, int]


@dataclass(frozen=True)
class SeriesReadings:
    """All that was read in one CT series: nodules of at least 3 mm and the other findings; both may be empty."""

    series_uid: str
    readings: tuple[Reading, ...]
    marks: tuple[Mark, ...] = ()


def _refuse_document_type(*_: object) -> None:
    """XML has to declare nothing: no document type, hence no entities to expand and no files to fetch."""
    raise ValueError("it has a document type, as LIDC's files never have")


def parse_xml(content: bytes, source: str) -> SeriesReadings | None:
    """Read one LIDC XML file.

    Args:
        content: the file.
        source: its name, for messages.

    Returns:
        The readings; ``None`` for the reading of a radiograph (CR, DX), whose root element is ``IdriReadMessage``.

    Raises:
        LidcError: no XML, an XML of another kind, or one that lacks what it must hold.
    """
    scout = expat.ParserCreate()
    scout.StartDoctypeDeclHandler = _refuse_document_type
    try:
        scout.Parse(content, True)
        root = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise LidcError(f"{source}: expected plain XML, got a damaged file ({error}); copy it again") from error
    for element in root.iter():  # without namespaces: http://www.nih.gov, http://www.nih.gov/idri
        element.tag = element.tag.rpartition("}")[2]
    if root.tag == "IdriReadMessage":
        return None
    if root.tag != "LidcReadMessage":
        raise LidcError(f"{source}: expected LIDC's LidcReadMessage, got <{root.tag}>; leave this file out")
    try:
        return _series(root)
    except (ValueError, KeyError) as error:
        raise LidcError(
            f"{source}: expected a whole LIDC reading, got one with {error}; copy the file again"
        ) from error


def _text(element: ElementTree.Element, name: str) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise KeyError(f"no {name}")
    return text


def _all(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """The children of a name; there must be one."""
    found = element.findall(name)
    if not found:
        raise KeyError(f"{element.tag} without {name}")
    return found


def _series(root: ElementTree.Element) -> SeriesReadings:
    found: list[Reading | Mark] = []
    for reader, session in enumerate(_all(root, "readingSession"), start=1):
        found += [_nodule(nodule, reader) for nodule in session.findall("unblindedReadNodule")]
        for other in session.findall("nonNodule"):
            column, row = _points(other, "locus")[0].tolist()
            found.append(Mark(reader, NON_NODULE, *_slice(other), pixel=(column, row)))
    return SeriesReadings(
        _text(_all(root, "ResponseHeader")[0], "SeriesInstanceUid"),
        tuple(one for one in found if isinstance(one, Reading)),
        tuple(one for one in found if isinstance(one, Mark)),
    )


def _nodule(element: ElementTree.Element, reader: int) -> Reading | Mark:
    rois = _all(element, "roi")
    name = _text(element, "noduleID")
    if sum(len(roi.findall("edgeMap")) for roi in rois) == 1:
        column, row = _points(rois[0], "edgeMap")[0].tolist()
        return Mark(reader, SMALL_NODULE, *_slice(rois[0]), pixel=(column, row))
    slices: dict[str, list[ElementTree.Element]] = {}
    for roi in rois:
        slices.setdefault(_slice(roi)[0], []).append(roi)
    regions = tuple(
        region_of_outlines(*_slice(own[0]), [(_points(roi, "edgeMap"), _is_inclusion(roi)) for roi in own])
        for own in slices.values()
    )
    given = {child.tag: (child.text or "").strip() for part in element.findall("characteristics") for child in part}
    ratings = {key: int(given[key]) for key in RATINGS if given.get(key)}
    return Reading(reader, name, regions, {key: value for key, value in ratings.items() if value > 0})


def _slice(element: ElementTree.Element) -> tuple[str, float]:
    """The slice's SOPInstanceUID and z, LPS mm."""
    return _text(element, "imageSOP_UID"), float(_text(element, "imageZposition"))


def _points(element: ElementTree.Element, name: str) -> Pixels:
    points = _all(element, name)
    return np.array([[int(point.findtext(axis) or "") for axis in ("xCoord", "yCoord")] for point in points])


def _is_inclusion(roi: ElementTree.Element) -> bool:
    text = _text(roi, "inclusion").upper()
    if text not in ("TRUE", "FALSE"):
        raise ValueError(f"inclusion {text!r}")
    return text == "TRUE"


def region_of_outlines(sop_uid: str, z_mm: float, outlines: list[tuple[Pixels, bool]]) -> Region:
    """What the outlines of one slice enclose: every inclusion's interior, less exclusions with their own pixels.

    Args:
        sop_uid: the slice.
        z_mm: its z, LPS.
        outlines: at least one: points ``[N, 2]`` (column, row) in the order of the walk, whether an inclusion.
    """
    border = np.concatenate([points for points, _ in outlines])
    corner, last = border.min(axis=0), border.max(axis=0)
    inside = np.zeros(last - corner + 1, dtype=bool)
    for points, is_inclusion in sorted(outlines, key=lambda outline: not outline[1]):
        interior, line = _interior(points - corner, inside.shape)
        if is_inclusion:
            inside |= interior
        else:
            inside &= ~(interior | line)
    return Region(sop_uid, z_mm, *cut(inside, corner), border)


def cut(inside: Mask, corner: Pixels) -> tuple[Pixels, Mask]:
    """A mask no larger than what it holds, and its new corner; with nothing inside it has no pixel."""
    box = next(iter(ndimage.find_objects(inside.astype(np.uint8))), (slice(0, 0), slice(0, 0)))
    return corner + [part.start for part in box], inside[box].copy()


def _interior(points: Pixels, shape: tuple[int, ...]) -> tuple[Mask, Mask]:
    """Pixels strictly inside a closed polygon (odd number of crossings), and those on its line: two ``[I, J]`` bool."""
    line, interior = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    line[tuple(points.T)] = True
    step = np.roll(points, -1, axis=0) - points
    pieces = np.gcd(*np.abs(step.T))  # an edge runs through this many pixels' centres
    for edge in np.flatnonzero(pieces > 1):
        nth = np.arange(pieces[edge])[:, None]
        line[tuple((points[edge] + nth * step[edge] // pieces[edge]).T)] = True
    interior[~line] = Path(points).contains_points(np.argwhere(~line))
    return interior, line

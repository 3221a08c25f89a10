"""Reads LIDC's XML files as readings: what each reader saw in one series.

Sources: Armato SG III et al., Medical Physics 38:915-931, 2011, doi:10.1118/1.3528204, and the annotated XML example
that The Cancer Imaging Archive provides with LIDC-IDRI ("annotated XML file", March 2010):

- Each CT was read twice by four readers; the file contains only the second, unblinded session. Readers are anonymous:
  the first reader of one file need not be the first of another.
- A nodule of 3 to 30 mm has an outline in each of its slices and nine ratings. A nodule below 3 mm, and a lesion of at
  least 3 mm that is not a nodule, have one point and no ratings (or nine zeros).
- An outline is the "outer border": its pixels lie just outside what it encloses, both for inclusions and for exclusions
  (such as a cavity).
- ``xCoord`` is the column and ``yCoord`` the row, both from 0; ``imageSOP_UID`` names the slice.

Our own rules: an outline with more than one point is a nodule >= 3 mm, whether rated or not (two outlines of the 1018
series lack ratings); a rating of 0 means that there is none.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from xml.parsers import expat

import numpy as np
import numpy.typing as npt
from matplotlib.path import Path
from scipy import ndimage

from ...core.geometry import BoolArray
from ..datalists import PrepareError

RATINGS = (
    "subtlety",
    "internalStructure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "texture",
    "malignancy",
)

SMALL_NODULE, NON_NODULE = "nodule < 3 mm", "non-nodule"

Pixels = npt.NDArray[np.int64]


class LidcError(PrepareError):
    """Readings, or a scan together with its readings, cannot be used."""


@dataclass(frozen=True)
class Frame:
    """The position of a region's pixels according to a frame of a DICOM Segmentation.

    Attributes:
        position_lps_mm: centre of the first pixel.
        orientation: direction cosines (LPS) along a row, then along a column.
        size: columns, rows.
    """

    position_lps_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Region:
    """The part of one reader's nodule in one slice.

    Attributes:
        sop_uid: SOPInstanceUID of the slice; "" if the source does not give it, and ``z_mm`` identifies the slice.
        z_mm: z of the slice's position, LPS.
        corner: ``[2]`` column and row of ``inside[0, 0]``; if nothing is inside, smallest column and row of the border.
        inside: ``[I, J]`` bool, cropped to the pixels inside; ``[0, 0]`` if the border encloses no pixel.
        border: ``[N, 2]`` columns and rows of the pixels just outside, N >= 1.
        frame: position of the pixels; ``None`` if the source gives only columns and rows.
    """

    sop_uid: str
    z_mm: float
    corner: Pixels
    inside: BoolArray
    border: Pixels
    frame: Frame | None = None


@dataclass(frozen=True)
class Reading:
    """One reader's nodule of at least 3 mm.

    Attributes:
        reader: 1, 2, … within the series.
        name: its name in the source; not unique.
        regions: at least one; one per slice.
        ratings: some or all of :data:`RATINGS`, 1 to 5 (calcification 1 to 6); may be empty.
    """

    reader: int
    name: str
    regions: tuple[Region, ...]
    ratings: dict[str, int]


@dataclass(frozen=True)
class Mark:
    """One reader's point: a nodule below 3 mm, or a lesion that is not a nodule.

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
    """All readings of one CT series: nodules of at least 3 mm, and marks of other findings; both may be empty."""

    series_uid: str
    readings: tuple[Reading, ...]
    marks: tuple[Mark, ...] = ()


def _refuse_document_type(*_: object) -> None:
    """Refuse XML with a document type: it could declare entities to expand or files to fetch."""
    raise ValueError("it has a document type declaration, which LIDC's files never have")


def parse_xml(content: bytes, source: str) -> SeriesReadings | None:
    """Read one LIDC XML file.

    Args:
        content: the file.
        source: its name, for messages.

    Returns:
        The readings; ``None`` for the reading of a radiograph (CR, DX), whose root element is ``IdriReadMessage``.

    Raises:
        LidcError: the file is not plain XML, not a LIDC reading, or lacks required content.
    """
    scout = expat.ParserCreate()
    scout.StartDoctypeDeclHandler = _refuse_document_type
    try:
        scout.Parse(content, True)
        root = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise LidcError(f"{source}: expected plain XML, got a damaged file ({error}); copy it again") from error
    for element in root.iter():  # remove the namespaces http://www.nih.gov and http://www.nih.gov/idri
        element.tag = element.tag.rpartition("}")[2]
    if root.tag == "IdriReadMessage":
        return None
    if root.tag != "LidcReadMessage":
        raise LidcError(f"{source}: expected LIDC's LidcReadMessage, got <{root.tag}>; leave this file out")
    try:
        return _series(root)
    except (ValueError, KeyError) as error:
        raise LidcError(
            f"{source}: expected a complete LIDC reading, got one with {error}; copy the file again"
        ) from error


def _text(element: ElementTree.Element, name: str) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise KeyError(f"no {name}")
    return text


def _all(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """Return the children with a name, at least one.

    Raises:
        KeyError: there is none.
    """
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
    """Return the SOPInstanceUID and z (LPS mm) of an element's slice."""
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
    """Return the region that the outlines of one slice enclose.

    It consists of the interiors of all inclusions, minus the interiors and the outlines' own pixels of all exclusions.

    Args:
        sop_uid: SOPInstanceUID of the slice.
        z_mm: z of the slice, LPS.
        outlines: at least one: its points ``[N, 2]`` (column, row) in order, and whether it is an inclusion.
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


def cut(inside: BoolArray, corner: Pixels) -> tuple[Pixels, BoolArray]:
    """Crop a mask to its true pixels; return its new corner and the mask, ``[0, 0]`` if no pixel is true."""
    box = next(iter(ndimage.find_objects(inside.astype(np.uint8))), (slice(0, 0), slice(0, 0)))
    return corner + [part.start for part in box], inside[box].copy()


def _interior(points: Pixels, shape: tuple[int, ...]) -> tuple[BoolArray, BoolArray]:
    """Return the pixels strictly inside a closed polygon, and those on its line: two ``[I, J]`` bool."""
    line, interior = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    line[tuple(points.T)] = True
    step = np.roll(points, -1, axis=0) - points
    pieces = np.gcd(*np.abs(step.T))  # pixel centres on each edge, one of its ends included
    for edge in np.flatnonzero(pieces > 1):
        nth = np.arange(pieces[edge])[:, None]
        line[tuple((points[edge] + nth * step[edge] // pieces[edge]).T)] = True
    interior[~line] = Path(points).contains_points(np.argwhere(~line))
    return interior, line

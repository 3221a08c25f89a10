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

from ...core.errors import UserError

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


class LidcError(UserError, ValueError):
    """Readings, or a scan with its readings, that cannot be used."""


@dataclass(frozen=True)
class Region:
    """What one reader's nodule covers of one slice.

    Attributes:
        sop_uid: SOPInstanceUID of the slice; "" where the source does not say, then ``z_mm`` tells.
        z_mm: z of the slice's position, LPS; ``None`` where the source does not say.
        corner: column and row of ``inside[0, 0]``; of the border's first ones where nothing is inside.
        inside: ``[I, J]`` bool, no larger than needed; ``[0, 0]``: a border of few points encloses no pixel.
        border: ``[N, 2]`` columns and rows of the pixels just outside, N >= 1.
    """

    sop_uid: str
    z_mm: float | None
    corner: tuple[int, int]
    inside: npt.NDArray[np.bool_]
    border: npt.NDArray[np.int64]


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
    z_mm: float | None
    pixel: tuple[int, int]


@dataclass(frozen=True)
class SeriesReadings:
    """All that was read in one CT series.

    Attributes:
        series_uid: SeriesInstanceUID of the CT.
        readers: how many read it; 0 where the source does not say.
        readings: nodules of at least 3 mm; may be empty.
        marks: the other findings; may be empty.
    """

    series_uid: str
    readers: int
    readings: tuple[Reading, ...]
    marks: tuple[Mark, ...]


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
    root = _parse_safely(content, source)
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


def _parse_safely(content: bytes, source: str) -> ElementTree.Element:
    """Parse XML that declares nothing: no document type, hence no entities to expand and no files to fetch.

    Returns:
        The root; tags without their namespace (http://www.nih.gov, http://www.nih.gov/idri).
    """
    scout = expat.ParserCreate()

    def refuse(name: str, *_: object) -> None:
        raise LidcError(f"{source}: expected plain XML, got a document type ({name}), which LIDC's files never have")

    scout.StartDoctypeDeclHandler = refuse
    try:
        scout.Parse(content, True)
        root = ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, LidcError):
            raise
        raise LidcError(f"{source}: expected XML, got a damaged file ({error}); copy it again") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def _text(element: ElementTree.Element, name: str) -> str:
    text = (element.findtext(name) or "").strip()
    if not text:
        raise KeyError(f"no {name}")
    return text


def _series(root: ElementTree.Element) -> SeriesReadings:
    header = root.find("ResponseHeader")
    if header is None:
        raise KeyError("no ResponseHeader")
    sessions = root.findall("readingSession")
    if not sessions:
        raise KeyError("no readingSession")
    readings: list[Reading] = []
    marks: list[Mark] = []
    for reader, session in enumerate(sessions, start=1):
        for nodule in session.findall("unblindedReadNodule"):
            found = _nodule(nodule, reader)
            if isinstance(found, Reading):
                readings.append(found)
            else:
                marks.append(found)
        marks += [_non_nodule(element, reader) for element in session.findall("nonNodule")]
    return SeriesReadings(_text(header, "SeriesInstanceUid"), len(sessions), tuple(readings), tuple(marks))


def _nodule(element: ElementTree.Element, reader: int) -> Reading | Mark:
    rois = element.findall("roi")
    name = _text(element, "noduleID")
    if not rois:
        raise KeyError(f"nodule {name} without roi")
    borders = [_points(roi, "edgeMap") for roi in rois]
    if sum(map(len, borders)) == 1:
        return Mark(reader, SMALL_NODULE, *_slice(rois[0]), pixel=(int(borders[0][0, 0]), int(borders[0][0, 1])))
    slices: dict[str, list[int]] = {}
    for number, roi in enumerate(rois):
        slices.setdefault(_slice(roi)[0], []).append(number)
    regions = tuple(
        region_of_outlines(*_slice(rois[numbers[0]]), [(borders[n], _is_inclusion(rois[n])) for n in numbers])
        for numbers in slices.values()
    )
    return Reading(reader, name, regions, _ratings(element))


def _non_nodule(element: ElementTree.Element, reader: int) -> Mark:
    column, row = _points(element, "locus")[0].tolist()
    return Mark(reader, NON_NODULE, *_slice(element), pixel=(column, row))


def _slice(element: ElementTree.Element) -> tuple[str, float]:
    """The slice's SOPInstanceUID and z, LPS mm."""
    return _text(element, "imageSOP_UID"), float(_text(element, "imageZposition"))


def _points(element: ElementTree.Element, name: str) -> npt.NDArray[np.int64]:
    points = [[int(point.findtext(axis) or "") for axis in ("xCoord", "yCoord")] for point in element.findall(name)]
    if not points:
        raise KeyError(f"{element.tag} without {name}")
    return np.array(points, dtype=np.int64)


def _is_inclusion(roi: ElementTree.Element) -> bool:
    text = _text(roi, "inclusion").upper()
    if text not in ("TRUE", "FALSE"):
        raise ValueError(f"inclusion {text!r}")
    return text == "TRUE"


def _ratings(element: ElementTree.Element) -> dict[str, int]:
    given = {child.tag: (child.text or "").strip() for part in element.findall("characteristics") for child in part}
    values = {name: int(given[name]) for name in RATINGS if given.get(name)}
    return {name: value for name, value in values.items() if value > 0}


def region_of_outlines(sop_uid: str, z_mm: float | None, outlines: list[tuple[npt.NDArray[np.int64], bool]]) -> Region:
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
    return _cut(sop_uid, z_mm, inside, corner, border)


def _cut(
    sop_uid: str,
    z_mm: float | None,
    inside: npt.NDArray[np.bool_],
    corner: npt.NDArray[np.int64],
    border: npt.NDArray[np.int64],
) -> Region:
    """A region whose mask is no larger than what it holds; with nothing inside it has no pixel."""
    pixels = np.argwhere(inside)
    first, end = (pixels.min(axis=0), pixels.max(axis=0) + 1) if len(pixels) else (np.zeros(2, int), np.zeros(2, int))
    cut = inside[first[0] : end[0], first[1] : end[1]].copy()
    return Region(sop_uid, z_mm, (int(corner[0] + first[0]), int(corner[1] + first[1])), cut, border)


def _interior(
    points: npt.NDArray[np.int64], shape: tuple[int, ...]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Pixels strictly inside a closed polygon (odd number of crossings), and those on its line: two ``[I, J]`` bool."""
    line = np.zeros(shape, dtype=bool)
    step = np.roll(points, -1, axis=0) - points
    pieces = np.gcd(*np.abs(step.T))  # an edge runs through this many pixels' centres
    edge, nth = _numbered(np.maximum(pieces, 1))
    line[tuple((points[edge] + nth[:, None] * step[edge] // np.maximum(pieces, 1)[edge, None]).T)] = True
    # A ray along i from a pixel in row j crosses an edge with one end after row j and one not after it.
    edge, nth = _numbered(np.abs(step[:, 1]))
    (i0, j0), (across, along) = points[edge].T, step[edge].T
    rows = np.minimum(j0, j0 + along) + nth
    crossing = i0 - (j0 - rows) * across // along  # rounded up: the pixels before it see the edge
    count = np.zeros((shape[0] + 1, shape[1]), dtype=np.int64)
    np.add.at(count, (crossing, rows), 1)
    beyond = count[::-1].cumsum(axis=0)[::-1][1:]
    return (beyond % 2 == 1) & ~line, line


def _numbered(counts: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each index as often as its count says, and which of its repetitions it is."""
    index = np.repeat(np.arange(len(counts)), counts)
    return index, np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)

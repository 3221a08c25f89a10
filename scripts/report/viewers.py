"""What viewers read: the mask, points for 3D Slicer, names and colours of the mask's labels.

NIfTI has no place for the names of labels that viewers read, so they stand in files of their own, in the formats that
the programs document: Slicer's markups JSON (schema 1.0.3) and colour table, ITK-SNAP's label descriptions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ..core.files import write_bytes, write_json
from ..core.nifti import write_nifti
from ..core.records import Nodule, ScanResult
from .html.page import shown_probability
from .tables import candidate_record

# The identifier that Slicer itself writes and compares; it is a name, not a place on the network.
MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/"
    "Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
)

ITK_SNAP_HEADER = "# ITK-SnAP Label Description File\n# File format:\n# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n"


class MaskNifti:
    """Write ``mask.nii.gz``: instance labels (0 = background) on the scan's own grid, RAS affine, mm."""

    filename = "mask.nii.gz"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``: uint8, or uint16 above 255 nodules; a scan without nodules gives zeros.

        The same result gives the same bytes.

        Raises:
            OutputError: the file cannot be written.
        """
        dtype = np.uint8 if result.mask.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16
        mask = result.mask.astype(dtype)
        return write_nifti(folder / self.filename, mask, result.affine_ras, "lung nodules, instance labels")


class SlicerMarkups:
    """Write ``nodules.mrk.json``: each nodule's centre as a named point (LPS mm) that 3D Slicer opens."""

    filename = "nodules.mrk.json"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules has a list without points.

        Raises:
            OutputError: the file cannot be written.
        """
        points = {
            "type": "Fiducial",
            "name": "lung nodules",
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "locked": True,
            "controlPoints": [_point(nodule) for nodule in result.nodules],
            "display": {"visibility": True, "pointLabelsVisibility": True, "propertiesLabelVisibility": False},
        }
        return write_json(folder / self.filename, {"@schema": MARKUPS_SCHEMA, "markups": [points]}, indent=2)


class SlicerLabels:
    """Write ``mask.ctbl``: the mask's labels with names and colours as a colour table of 3D Slicer."""

    filename = "mask.ctbl"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules has the background alone.

        Raises:
            OutputError: the file cannot be written.
        """

        def line(label: int, name: str, red: int, green: int, blue: int) -> str:
            return f"{label} {name.replace(' ', '_')} {red} {green} {blue} {255 if label else 0}\n"

        return write_bytes(folder / self.filename, ("# Color table file\n" + _lines(result, line)).encode())


class ItkSnapLabels:
    """Write ``mask.label.txt``: the same for ITK-SNAP, which reads it as label descriptions."""

    filename = "mask.label.txt"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules has the background alone.

        Raises:
            OutputError: the file cannot be written.
        """

        def line(label: int, name: str, red: int, green: int, blue: int) -> str:
            shown = 1 if label else 0
            return f'{label} {red} {green} {blue} {shown} {shown} {shown} "{name}"\n'

        return write_bytes(folder / self.filename, (ITK_SNAP_HEADER + _lines(result, line)).encode())


def nodule_name(nodule: Nodule) -> str:
    """Label, probability and the network's estimate of the diameter: "nodule 1 (0.97, 8.4 mm)"."""
    detection = nodule.detection
    probability = shown_probability(detection.probability)
    return f"nodule {nodule.label} ({probability}, {detection.diameter_mm:.1f} mm)"


def _point(nodule: Nodule) -> dict[str, Any]:
    return {
        "id": str(nodule.label),
        "label": nodule_name(nodule),
        "position": candidate_record(nodule.detection)["centre_lps_mm"],
        "selected": True,
        "locked": True,
        "visibility": True,
        "positionStatus": "defined",
    }


def _lines(result: ScanResult, line: Callable[[int, str, int, int, int], str]) -> str:
    """A line for the background (0, black) and each nodule; ten colours in turn."""
    colours = matplotlib.colormaps["tab10"].resampled(10)
    lines = [line(0, "background", 0, 0, 0)]
    for nodule in result.nodules:
        red, green, blue, _ = colours((nodule.label - 1) % 10, bytes=True)
        lines.append(line(nodule.label, nodule_name(nodule), int(red), int(green), int(blue)))
    return "".join(lines)

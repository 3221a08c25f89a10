"""Files for viewers: the mask, points for 3D Slicer, and names and colours of the mask's labels.

NIfTI cannot hold label names that viewers read, so these are written to separate files in the formats that the
programs document: Slicer's markups JSON (schema 1.0.3) and colour table, and ITK-SNAP's label descriptions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ..core.files import write_bytes, write_json
from ..core.nifti import write_nifti
from ..core.records import Nodule, ScanResult
from .base import Writer
from .html.render import shown_probability
from .tables import candidate_record

# The identifier that Slicer itself writes and compares; it is only a name and is never fetched.
MARKUPS_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/"
    "Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"
)


class MaskNifti(Writer):
    """Write ``mask.nii.gz``: instance labels (0 = background) on the scan's own grid, with the affine to RAS mm."""

    filename = "mask.nii.gz"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``: uint8, or uint16 above 255 nodules; a scan without nodules gives zeros.

        The same result gives identical bytes.

        Raises:
            OutputError: the file cannot be written.
        """
        dtype = np.min_scalar_type(result.mask.max(initial=0))
        mask = result.mask.astype(dtype)
        return write_nifti(folder / self.filename, mask, result.affine_ras, "lung nodules, instance labels")


class SlicerMarkups(Writer):
    """Write ``nodules.mrk.json``: each nodule's centre as a named point (LPS mm) that 3D Slicer opens."""

    filename = "nodules.mrk.json"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules has an empty list of points.

        Raises:
            OutputError: the file cannot be written.
        """
        points = {
            "type": "Fiducial",
            "name": "lung nodules",
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "locked": True,
            "controlPoints": [
                {
                    "id": str(nodule.label),
                    "label": nodule_name(nodule),
                    "position": candidate_record(nodule.detection)["centre_lps_mm"],
                    "selected": True,
                    "locked": True,
                    "visibility": True,
                    "positionStatus": "defined",
                }
                for nodule in result.nodules
            ],
            "display": {"visibility": True, "pointLabelsVisibility": True, "propertiesLabelVisibility": False},
        }
        return write_json(folder / self.filename, {"@schema": MARKUPS_SCHEMA, "markups": [points]}, indent=2)


class SlicerLabels(Writer):
    """Write ``mask.ctbl``: names and colours of the mask's labels, as a colour table of 3D Slicer."""

    filename = "mask.ctbl"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules has only the background.

        Raises:
            OutputError: the file cannot be written.
        """
        text = "# Color table file\n0 background 0 0 0 0\n"
        for label, name, (red, green, blue) in _named_colours(result):
            text += f"{label} {name.replace(' ', '_')} {red} {green} {blue} 255\n"
        return write_bytes(folder / self.filename, text.encode())


class ItkSnapLabels(Writer):
    """Write ``mask.label.txt``: names and colours of the mask's labels, as label descriptions of ITK-SNAP."""

    filename = "mask.label.txt"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``; a scan without nodules has only the background.

        Raises:
            OutputError: the file cannot be written.
        """
        text = "# ITK-SnAP Label Description File\n# File format:\n# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n"
        text += '0 0 0 0 0 0 0 "background"\n'
        for label, name, (red, green, blue) in _named_colours(result):
            text += f'{label} {red} {green} {blue} 1 1 1 "{name}"\n'
        return write_bytes(folder / self.filename, text.encode())


def _named_colours(result: ScanResult) -> list[tuple[int, str, Any]]:
    """Return label, name and colour (red, green, blue) of each nodule; the colours are repeated after ten labels."""
    colours = matplotlib.colormaps["tab10"].resampled(10)
    return [(n.label, nodule_name(n), colours((n.label - 1) % 10, bytes=True)[:3]) for n in result.nodules]


def nodule_name(nodule: Nodule) -> str:
    """Return a name with label, probability and predicted diameter: "nodule 1 (0.97, 8.4 mm)"."""
    detection = nodule.detection
    probability = shown_probability(detection.probability)
    return f"nodule {nodule.label} ({probability}, {detection.diameter_mm:.1f} mm)"

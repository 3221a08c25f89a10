"""The commands ``phantom`` (makes scans, masks and a datalist) and ``phantom_picture`` (draws the docs' picture)."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import SettingError
from ..core.files import writable_folder, write_json
from ..core.geometry import apply_affine, swap_lps_ras
from ..core.labels import NODULE
from ..core.text import shown_duration
from ..report.slices import Slice, draw_slices
from .chest import SCALES, make_chest, scan_chest
from .files import write_dicom_series, write_image
from .nodules import PhantomNodule

logger = logging.getLogger(__name__)

SUFFIXES = {"dicom": "", "mhd": ".mhd", "nifti": ".nii.gz"}  # file name suffix of a scan, by format
FORMATS = ("mixed", *SUFFIXES)


def _nodule_details(nodule: PhantomNodule) -> dict[str, Any]:
    """Return the entry for a nodule in the datalist."""
    return {
        "mask_label": nodule.label,
        "centre_lps_mm": [round(float(v), 4) for v in swap_lps_ras(nodule.centre_ras_mm)],
        "diameter_mm": round(nodule.diameter_mm, 4),
        "kind": nodule.kind,
        "margin": nodule.margin,
        "attachment": nodule.attachment,
    }


def _make_scan(output_dir: Path, index: int, seed: int, file_format: str, scale: float) -> dict[str, Any]:
    """Make and write one scan; return its datalist item."""
    own_seed = int(np.random.SeedSequence([seed, index]).generate_state(1)[0])  # different for every scan of every set
    chest = make_chest(own_seed, scale=scale)
    scan = scan_chest(chest, own_seed, style="axial" if file_format == "dicom" else "any")
    image, mask = f"images/phantom_{index:04d}{SUFFIXES[file_format]}", f"masks/phantom_{index:04d}.nii.gz"
    if file_format == "dicom":
        write_dicom_series(
            output_dir / image,
            scan.image_hu,
            scan.affine_ras,
            uid_seed=f"phantom/{own_seed}",
            kernel=scan.kernel,
            thickness_mm=scan.thickness_mm,
            feet_first=bool(scan.affine_ras[2, 2] < 0),
        )
    else:
        write_image(output_dir / image, scan.image_hu, scan.affine_ras)
    write_image(output_dir / mask, scan.mask, scan.affine_ras)
    nodules = [_nodule_details(nodule) for nodule in chest.nodules]
    return {
        "name": f"phantom_{index:04d}",
        "image": image,
        "mask": mask,
        "box": [[*one["centre_lps_mm"], *[one["diameter_mm"]] * 3] for one in nodules],  # world mm, LPS
        "label": [NODULE] * len(nodules),
        "nodules": nodules,
    }


def phantom(
    output_dir: str,
    scans: int = 8,
    seed: int = 0,
    format: str = "mixed",
    *,
    validation_fraction: float = 0.25,
    scale: float = 1.0,
) -> None:
    """Make synthetic chest CT scans, their nodule masks and a datalist. The same arguments give the same pixels.

    Args:
        output_dir: folder for images/, masks/ and datalist.json; existing files of the same names are replaced.
        scans: number of scans.
        seed: seed of the whole set.
        format: dicom, mhd, nifti, or mixed (each in turn).
        validation_fraction: share of the scans, taken from the end, that goes to the section "validation"; if it is
            above 0 and there are two scans or more, each section gets at least one.
        scale: size factor of the bodies, 0.35 to 1.2; 0.4 makes miniatures for a quick try.

    Raises:
        SettingError: an argument is out of range.
        OutputError: the output folder cannot be written to.
    """
    for option, value, is_right, expected in (
        ("scans", scans, scans >= 1, "a whole number of at least 1"),
        ("seed", seed, seed >= 0, "a whole number of at least 0"),
        ("format", format, format in FORMATS, f"one of {', '.join(FORMATS)}"),
        ("validation_fraction", validation_fraction, 0 <= validation_fraction < 1, "at least 0 and below 1"),
        ("scale", scale, SCALES[0] <= scale <= SCALES[1], f"{SCALES[0]} to {SCALES[1]}"),
    ):
        if not is_right:
            raise SettingError(f"--{option}: expected {expected}, got {value}; choose another")
    began = time.perf_counter()
    target = writable_folder(Path(output_dir).resolve())
    items = []
    for index in range(scans):
        file_format = FORMATS[1 + index % 3] if format == "mixed" else format
        items.append(_make_scan(target, index, seed, file_format, scale))
        found = ", ".join(f"{n['diameter_mm']:.1f} mm {n['kind']}" for n in items[-1]["nodules"]) or "no nodule"
        logger.info("%d/%d %s: %s", index + 1, scans, items[-1]["image"], found)
    held_out = round(scans * validation_fraction)
    if validation_fraction > 0 and scans > 1:
        held_out = min(max(held_out, 1), scans - 1)
    sections = {"training": items[: scans - held_out], "validation": items[scans - held_out :]}
    write_json(target / "datalist.json", sections)
    used = sum(f.stat().st_size for part in ("images", "masks") for f in (target / part).rglob("*") if f.is_file())
    logger.info("%s: %d scans, %.0f MB, %s", target, scans, used / 1e6, shown_duration(time.perf_counter() - began))


def phantom_picture(output: str, seed: int = 0) -> None:
    """Draw a coronal and an axial slice of a synthetic scan in the lung window, with its nodules outlined.

    Args:
        output: PNG file to write.
        seed: seed of the chest and of its scan.

    Raises:
        OutputError: the file cannot be written.
    """
    chest = make_chest(seed, nodules=6)
    scan = scan_chest(chest, seed)
    largest = max(chest.nodules, key=lambda n: n.diameter_mm)
    centre = apply_affine(np.linalg.inv(scan.affine_ras), largest.centre_ras_mm).tolist()
    outlines = [(scan.mask == nodule.label, "#ffb000", "solid") for nodule in chest.nodules]
    draw_slices(Path(output), scan.image_hu, scan.affine_ras, centre, [Slice(1), Slice(2)], outlines, (11, 4.8))
    logger.info("%s written", output)

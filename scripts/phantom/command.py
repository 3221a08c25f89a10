"""The commands ``phantom`` (scans with their truth and a datalist) and ``phantom_picture`` (the docs' picture)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..core.commands import OptionError
from ..core.files import write_figure
from ..core.geometry import apply_affine, spacing_mm, swap_lps_ras
from .chest import Chest, Scan, make_chest, scan_chest
from .files import write_dicom_series, write_image
from .nodules import PhantomNodule

logger = logging.getLogger(__name__)

FORMATS = ("mixed", "dicom", "mhd", "nifti")
_LUNG_WINDOW_HU = (-1350, 150)  # low, high of the picture


def _write_dicom(folder: Path, name: str, scan: Scan, seed: int) -> Path:
    feet_first = bool(scan.affine_ras[2, 2] < 0)
    return write_dicom_series(
        folder / name,
        scan.image_hu,
        scan.affine_ras,
        uid_seed=f"phantom/{seed}",
        kernel=scan.kernel,
        thickness_mm=scan.thickness_mm,
        feet_first=feet_first,
    )


def _write_mhd(folder: Path, name: str, scan: Scan, seed: int) -> Path:
    return write_image(folder / f"{name}.mhd", scan.image_hu, scan.affine_ras)


def _write_nifti(folder: Path, name: str, scan: Scan, seed: int) -> Path:
    return write_image(folder / f"{name}.nii.gz", scan.image_hu, scan.affine_ras)


_WRITERS: dict[str, Callable[[Path, str, Scan, int], Path]] = {
    "dicom": _write_dicom,
    "mhd": _write_mhd,
    "nifti": _write_nifti,
}


def nodule_entry(nodule: PhantomNodule) -> tuple[list[float], dict[str, Any]]:
    """A nodule's box ``[x, y, z, w, h, d]`` (centre and edges, world mm, LPS) and its details for the datalist."""
    centre_lps_mm = [round(float(v), 4) for v in swap_lps_ras(nodule.centre_ras_mm)]
    diameter = round(nodule.diameter_mm, 4)
    details = {
        "mask_label": nodule.label,
        "centre_lps_mm": centre_lps_mm,
        "diameter_mm": diameter,
        "kind": nodule.kind,
        "margin": nodule.margin,
        "attachment": nodule.attachment,
    }
    return [*centre_lps_mm, diameter, diameter, diameter], details


def _scan_seed(seed: int, index: int) -> int:
    """A seed of its own for every scan of every set."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


def _make_scan(output_dir: Path, index: int, seed: int, file_format: str, scale: float) -> dict[str, Any]:
    """Make and write one scan; returns its datalist item."""
    name = f"phantom_{index:04d}"
    own_seed = _scan_seed(seed, index)
    chest = make_chest(own_seed, scale=scale)
    scan = scan_chest(chest, own_seed, style="axial" if file_format == "dicom" else "any")
    image = _WRITERS[file_format](output_dir / "images", name, scan, own_seed)
    mask = write_image(output_dir / "masks" / f"{name}.nii.gz", scan.mask, scan.affine_ras)
    entries = [nodule_entry(n) for n in chest.nodules]
    return {
        "name": name,
        "image": image.relative_to(output_dir).as_posix(),
        "mask": mask.relative_to(output_dir).as_posix(),
        "box": [box for box, _ in entries],
        "label": [0] * len(entries),
        "nodules": [details for _, details in entries],
    }


def _write_datalist(path: Path, items: list[dict[str, Any]], validation_fraction: float) -> None:
    """The last part of the scans is for validation; with two scans or more, each part gets at least one."""
    held_out = round(len(items) * validation_fraction)
    if validation_fraction > 0 and len(items) > 1:
        held_out = min(max(held_out, 1), len(items) - 1)
    split = len(items) - held_out
    partial = path.with_name(f".partial-{path.name}")
    partial.write_text(json.dumps({"training": items[:split], "validation": items[split:]}, indent=1) + "\n")
    partial.replace(path)


def _check(scans: int, seed: int, file_format: str, validation_fraction: float) -> None:
    if isinstance(scans, bool) or not isinstance(scans, int) or scans < 1:
        raise OptionError(f"--scans must be a whole number of at least 1, got {scans!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise OptionError(f"--seed must be a whole number of at least 0, got {seed!r}")
    if file_format not in FORMATS:
        raise OptionError(f"--format must be one of {', '.join(FORMATS)}, got {file_format!r}")
    if not 0 <= validation_fraction < 1:
        raise OptionError(f"--validation_fraction must be at least 0 and below 1, got {validation_fraction!r}")


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
        output_dir: gets images/, masks/ and datalist.json; existing files of the same names are replaced.
        scans: how many.
        seed: of the whole set.
        format: dicom, mhd, nifti, or mixed (each in turn).
        validation_fraction: share of the scans, the last ones, that the datalist puts under "validation".
        scale: size of the bodies; 0.4 makes miniatures for a quick try.

    Raises:
        OptionError: an argument out of range.
        OSError: the output folder cannot be written to.
    """
    _check(scans, seed, format, validation_fraction)
    began = time.perf_counter()
    target = Path(str(output_dir)).resolve()
    try:
        for folder in ("images", "masks"):
            (target / folder).mkdir(parents=True, exist_ok=True)
        (target / ".partial-datalist.json").touch()
    except OSError as error:
        raise OSError(f"--output_dir {target} cannot be written to ({error}); choose another folder") from error
    items = []
    for index in range(scans):
        file_format = FORMATS[1 + index % 3] if format == "mixed" else format
        items.append(_make_scan(target, index, seed, file_format, scale))
        found = ", ".join(f"{n['diameter_mm']:.1f} mm {n['kind']}" for n in items[-1]["nodules"]) or "no nodule"
        logger.info("%d/%d %s: %s", index + 1, scans, items[-1]["image"], found)
    _write_datalist(target / "datalist.json", items, validation_fraction)
    used = sum(f.stat().st_size for part in ("images", "masks") for f in (target / part).rglob("*") if f.is_file())
    logger.info("%s: %d scans, %.0f MB, %.0f s", target, scans, used / 1e6, time.perf_counter() - began)


def _clearest_voxel(chest: Chest, scan: Scan) -> tuple[int, int, int]:
    """Where to cut the picture: the largest nodule's centre on the scan's grid."""
    largest = max(chest.nodules, key=lambda n: n.diameter_mm)
    centre = apply_affine(np.linalg.inv(scan.affine_ras), largest.centre_ras_mm)
    i, j, k = (int(v) for v in np.rint(centre))
    return i, j, k


def phantom_picture(output: str, seed: int = 0) -> None:
    """Draw a coronal and an axial slice of a synthetic scan, lung window, nodules outlined; the docs' picture.

    Args:
        output: PNG file to write.
        seed: of the chest and of its scan.
    """
    from matplotlib.figure import Figure

    chest = make_chest(seed, nodules=6)
    scan = scan_chest(chest, seed)
    _i, j, k = _clearest_voxel(chest, scan)
    spacing = spacing_mm(scan.affine_ras)
    low, high = _LUNG_WINDOW_HU
    figure = Figure(figsize=(11, 4.8), facecolor="black")
    head_up = "lower" if scan.affine_ras[2, 2] > 0 else "upper"
    cuts: tuple[tuple[Any, str, float], ...] = (
        (np.s_[:, j, :], head_up, spacing[2]),
        (np.s_[:, :, k], "upper", spacing[1]),
    )
    for column, (cut, origin, height_mm) in enumerate(cuts):
        axes = figure.add_axes((0.5 * column, 0, 0.5, 1))
        image, mask = scan.image_hu[cut].T, scan.mask[cut].T
        style = {"origin": origin, "aspect": height_mm / spacing[0], "interpolation": "bilinear"}
        axes.imshow(image, cmap="gray", vmin=low, vmax=high, **style)
        for label in np.unique(mask[mask > 0]):
            axes.contour(mask == label, levels=[0.5], colors="#ffb000", linewidths=1.2)
        axes.set_axis_off()
    path = Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(path, figure, dpi=90, facecolor="black", metadata={"Software": None})
    logger.info("%s written", path)

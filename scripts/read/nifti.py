"""Reads NIfTI with nibabel: ITK fills a truncated file with zeros, and refuses a sheared sform."""

from __future__ import annotations

import gzip
import io
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..core.geometry import FloatArray, apply_affine, spacing_mm
from ..core.paths import unreadable
from .scan import ScanError, make_grid
from .text_headers import ImageHeader

FORM_DISAGREEMENT_MM = 1.0  # a larger difference between sform and qform is noted
STEP_TOLERANCE = 0.01  # relative, between the steps of the sform and pixdim: rounded headers differ by less
GZIP_MARK = b"\x1f\x8b"  # a file that begins with these bytes is unpacked, whatever its name
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
MM_PER_UNIT = (1.0, 1000.0, 1.0, 1e-3)  # by the code in xyzt_units: unknown, m, mm, µm


def read_nifti_header(path: Path) -> ImageHeader:
    """Read the header of a NIfTI file, without checking that the voxels are there.

    Raises:
        ScanError: the file has no valid NIfTI header, is not a volume, or its voxel size is unknown or contradictory.
    """
    try:
        reason = unreadable(path)
        if reason:
            raise ValueError(reason)
        with path.open("rb") as file:
            packed = file.read(2) == GZIP_MARK
        with gzip.open(path) if packed else path.open("rb") as stream:
            header = _raw_header(stream.read(HEADER_BYTES))
        slope, intercept = header.get_slope_inter()
        affine_ras, pixdim_mm = _affine_ras(path, header)
    except ScanError:
        raise
    except Exception as error:  # nibabel and gzip raise almost any type on damaged bytes
        raise ScanError(
            f"{path}: expected a NIfTI volume, got a truncated or damaged file ({error}); copy it again."
        ) from error
    grid = make_grid(str(path), header.get_data_shape(), affine_ras)
    return ImageHeader(
        path=path,
        form="NIfTI",
        grid=grid,
        components=1,
        dtype=header.get_data_dtype(),
        file=path,
        skip=0,
        packed=packed,
        modality="",
        notes=(*_check_steps(path, header, affine_ras, pixdim_mm), *_form_notes(header)),
        lead=int(header["vox_offset"]),
        scaling=(1.0 if slope is None else slope, 0.0 if intercept is None else intercept),
    )


def _raw_header(data: bytes) -> Any:
    """Return the header as stored in the file; with its checks, nibabel would replace a pixdim of 0 by 1.

    Raises:
        ValueError: it is not a valid header of a single file that contains its voxels.
    """
    stored = {int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")}  # in either byte order
    kinds = {kind.template_dtype.itemsize: kind for kind in (nib.Nifti1Header, nib.Nifti2Header)}
    size = next((size for size in kinds if size in stored and size <= len(data)), 0)
    if not size:
        raise ValueError("no NIfTI header")
    header = kinds[size].from_fileobj(io.BytesIO(data[:size]), check=False)
    dim, bits, magic, start = (header[name].tolist() for name in ("dim", "bitpix", "magic", "vox_offset"))
    dtype = header.get_data_dtype()
    if not 1 <= dim[0] <= 7 or min(header.get_data_shape(), default=0) < 1:
        raise ValueError(f"lengths {dim}")
    if bits != 8 * dtype.itemsize:
        raise ValueError(f"{bits} bits per voxel of {dtype}")
    if magic[:3] not in (b"n+1", b"n+2"):
        raise ValueError(f"magic {magic!r}, expected that of one file with its voxels in it")
    if not size + 4 <= start < 2**31:
        raise ValueError(f"voxels begin at byte {start}")
    return header


def _affine_ras(path: Path, header: Any) -> tuple[FloatArray, FloatArray | None]:
    """Return the voxel-to-RAS affine, mm, and the voxel sizes ``[3]`` in pixdim, mm, or ``None`` if they are invalid.

    The affine is that of the sform, otherwise of quaternion and pixdim, otherwise of pixdim alone.

    Raises:
        ScanError: pixdim is needed and gives no valid sizes, or the unit of length is unknown.
    """
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    has_sizes = bool(np.isfinite(pixdim).all()) and pixdim.min() > 0
    code = int(header["xyzt_units"]) & 7
    if header["sform_code"] == 0 and not has_sizes:
        raise ScanError(
            f"{path}: expected voxel sizes above 0 in pixdim, or an sform, got {pixdim.tolist()}: the voxels' size is "
            "unknown; correct the header or export the scan again."
        )
    if code >= len(MM_PER_UNIT):
        raise ScanError(f"{path}: expected lengths in m, mm or µm, got unit code {code}; correct the header.")
    mm = MM_PER_UNIT[code]
    return np.diag([mm, mm, mm, 1.0]) @ header.get_best_affine(), mm * pixdim if has_sizes else None


def _check_steps(path: Path, header: Any, affine_ras: FloatArray, pixdim_mm: FloatArray | None) -> tuple[str, ...]:
    """Compare the sform's steps with pixdim; return a note if pixdim gives no sizes.

    For a tilted grid, pixdim may be the distance between slices instead of the step from one slice to the next.

    Raises:
        ScanError: sform and pixdim contradict each other.
    """
    if header["sform_code"] == 0:
        return ()
    if pixdim_mm is None:
        return ("pixdim of the NIfTI header gives no voxel size: that of the sform is used",)
    steps_mm = spacing_mm(affine_ras)
    across_mm = 1.0 / np.linalg.norm(np.linalg.inv(affine_ras[:3, :3]), axis=1)
    fits = [np.isclose(pixdim_mm, lengths, rtol=STEP_TOLERANCE, atol=0) for lengths in (steps_mm, across_mm)]
    if not np.logical_or(*fits).all():
        shown, other = (" × ".join(f"{length:.4g}" for length in lengths) for lengths in (steps_mm, pixdim_mm))
        raise ScanError(
            f"{path}: expected one voxel size, got {shown} mm from the sform and {other} mm from pixdim; correct the "
            "header or export the scan again."
        )
    return ()


def _form_notes(header: Any) -> tuple[str, ...]:
    """Return a note if a header gives no orientation, or if sform and qform disagree; the sform is used then."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    if not any(codes):
        return ("the NIfTI header gives no orientation (sform and qform code 0): left and right are assumed",)
    if not all(codes):
        return ()
    corners = list(product(*((0, length - 1) for length in header.get_data_shape()[:3])))
    try:
        with np.errstate(all="ignore"):
            apart = apply_affine(header.get_sform(), corners) - apply_affine(header.get_qform(), corners)
            apart_mm = np.linalg.norm(apart, axis=1).max() * MM_PER_UNIT[int(header["xyzt_units"]) & 7]
    except Exception:  # an invalid quaternion
        return ("the quaternion of the NIfTI header cannot be read: the sform is used",)
    far = f"sform and qform of the NIfTI header differ by up to {apart_mm:.0f} mm: the sform is used"
    return () if apart_mm <= FORM_DISAGREEMENT_MM else (far,)

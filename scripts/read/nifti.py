"""NIfTI, read by nibabel: ITK fills a truncated file with zeros, and refuses a sheared sform."""

from __future__ import annotations

import gzip
import io
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy

from ..core.geometry import FloatArray, apply_affine, spacing_mm
from ..core.paths import unreadable
from .scan import Grid, ScanError, make_grid
from .text_headers import read_exactly

FORM_DISAGREEMENT_MM = 1.0  # between sform and qform before it is worth a note
STEP_TOLERANCE = 0.01  # between the steps of the sform and pixdim: rounded headers differ by less
GZIP_MARK = b"\x1f\x8b"  # a file is unpacked where it begins so, whatever its name says
HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
MM_PER_UNIT = {"mm": 1.0, "meter": 1000.0, "micron": 1e-3, "unknown": 1.0}


@dataclass(frozen=True)
class NiftiHeader:
    """What the header says, checked to describe a volume.

    Attributes:
        path: the file.
        grid: of the scan.
        header: by nibabel, as it stands in the file.
        packed: whether the file is compressed.
        notes: what the reader of a report should know.
    """

    path: Path
    grid: Grid
    header: Any
    packed: bool
    notes: tuple[str, ...]
    form: ClassVar = "NIfTI"
    modality: ClassVar = ""

    def read_values(self) -> npt.NDArray[Any]:
        """The voxels, scaled as the header says, on its grid: ``[I, J, K]``.

        Raises:
            ScanError: they are missing, damaged or more than the header says.
        """
        shape, dtype, offset = (
            self.header.get_data_shape(),
            self.header.get_data_dtype(),
            int(self.header["vox_offset"]),
        )
        try:
            data = read_exactly(self.path, offset + math.prod(map(int, shape)) * dtype.itemsize, packed=self.packed)
            slope, intercept = self.header.get_slope_inter()
            scaling = (1.0 if slope is None else slope, 0.0 if intercept is None else intercept)
            values = np.asanyarray(ArrayProxy(io.BytesIO(data), (shape, dtype, offset, *scaling)))
        except Exception as error:  # nibabel and zlib raise almost any type on damaged bytes
            raise _damaged(self.path, error) from error
        return values.reshape(self.grid.shape)


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read a header; whether the voxels are there is not looked at.

    Raises:
        ScanError: no NIfTI header, no volume, or voxels whose size is open.
    """
    reason = unreadable(path)
    if reason:
        raise _damaged(path, reason)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP_MARK
        with gzip.open(path) if packed else path.open("rb") as stream:
            data = stream.read(HEADER_BYTES)
        header = _raw_header(data)
        affine_ras = _affine_ras(path, header)
        shape = header.get_data_shape()
    except ScanError:
        raise
    except Exception as error:  # nibabel and gzip raise almost any type on damaged bytes
        raise _damaged(path, error) from error
    grid = make_grid(str(path), shape, affine_ras)
    return NiftiHeader(path, grid, header, packed, (*_check_steps(path, header, affine_ras), *_form_notes(header)))


def _damaged(path: Path, error: object) -> ScanError:
    return ScanError(f"{path}: expected a NIfTI volume, got a truncated or damaged file ({error}); copy it again.")


def _raw_header(data: bytes) -> Any:
    """The header as it stands in the file: nibabel would replace a pixdim of 0 by 1.

    Raises:
        ValueError: it cannot be that of one file with its voxels in it.
    """
    said = {int.from_bytes(data[:4], "little"), int.from_bytes(data[:4], "big")}  # in either byte order
    kinds = {kind.template_dtype.itemsize: kind for kind in (nib.Nifti1Header, nib.Nifti2Header)}
    size = next((size for size in kinds if size in said and size <= len(data)), 0)
    if not size:
        raise ValueError("no NIfTI header")
    header = kinds[size].from_fileobj(io.BytesIO(data[:size]), check=False)
    shape = header.get_data_shape()
    if not 1 <= int(header["dim"][0]) <= 7 or any(int(n) < 1 for n in shape):
        raise ValueError(f"lengths {header['dim'].tolist()}")
    if int(header["bitpix"]) != 8 * header.get_data_dtype().itemsize:
        raise ValueError(f"{header['bitpix']} bits a voxel of {header.get_data_dtype()}")
    if bytes(header["magic"].item()).rstrip(b"\0")[:3] not in (b"n+1", b"n+2"):
        raise ValueError(f"magic {header['magic'].item()!r}, expected that of one file with its voxels in it")
    if not size + 4 <= float(header["vox_offset"]) < 2**31:
        raise ValueError(f"voxels begin at byte {header['vox_offset']}")
    return header


def _affine_ras(path: Path, header: Any) -> FloatArray:
    """Voxel to RAS mm: by the sform, else by quaternion and pixdim, else by pixdim alone.

    Raises:
        ScanError: pixdim is needed and gives no sizes.
    """
    pixdim = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    if int(header["sform_code"]) <= 0 and not (np.isfinite(pixdim).all() and pixdim.min() > 0):
        raise ScanError(
            f"{path}: expected voxel sizes above 0 in pixdim, or an sform, got {pixdim.tolist()}: the voxels' size is "
            "unknown; correct the header or export the scan again."
        )
    code = int(header["xyzt_units"]) & 7
    if code not in range(4):
        raise ScanError(f"{path}: expected lengths in m, mm or µm, got unit code {code}; correct the header.")
    if int(header["sform_code"]) > 0:
        affine = header.get_sform()
    elif int(header["qform_code"]) > 0:
        affine = header.get_qform()
    else:
        affine = header.get_base_affine()
    return np.asarray(np.diag([MM_PER_UNIT[header.get_xyzt_units()[0]]] * 3 + [1.0]) @ affine, dtype=np.float64)


def _check_steps(path: Path, header: Any, affine_ras: FloatArray) -> tuple[str, ...]:
    """Compare the sform's steps with pixdim; a note where pixdim gives none.

    Of a tilted grid, pixdim may be the distance of the slices instead of the step from one to the next.

    Raises:
        ScanError: they contradict each other.
    """
    if int(header["sform_code"]) <= 0:
        return ()
    pixdim_mm = np.abs(np.float64(header["pixdim"][1:4])) * MM_PER_UNIT[header.get_xyzt_units()[0]]
    if not (np.isfinite(pixdim_mm).all() and pixdim_mm.min() > 0):
        return ("pixdim of the NIfTI header gives no voxel size: that of the sform is used",)
    steps_mm = spacing_mm(affine_ras)
    across_mm = 1.0 / np.linalg.norm(np.linalg.inv(affine_ras[:3, :3]), axis=1)
    fits = [np.isclose(pixdim_mm, lengths, rtol=STEP_TOLERANCE, atol=0) for lengths in (steps_mm, across_mm)]
    if not np.logical_or(*fits).all():
        raise ScanError(
            f"{path}: expected one voxel size, got {_shown(steps_mm)} mm by the sform and {_shown(pixdim_mm)} mm by "
            "pixdim; correct the header or export the scan again."
        )
    return ()


def _shown(lengths: FloatArray) -> str:
    return " × ".join(f"{length:.4g}" for length in lengths)


def _form_notes(header: Any) -> tuple[str, ...]:
    """Say where a header leaves its orientation open or contradicts itself; the sform counts first."""
    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        return ("the NIfTI header gives no orientation (sform and qform code 0): left and right are assumed",)
    if min(codes) <= 0:
        return ()
    last = np.array((*header.get_data_shape(), 1, 1)[:3]) - 1
    corners = np.array(list(product(*((0, end) for end in last))))
    try:
        with np.errstate(all="ignore"):
            apart = apply_affine(header.get_sform(), corners) - apply_affine(header.get_qform(), corners)
            apart_mm = np.linalg.norm(apart, axis=1).max() * MM_PER_UNIT[header.get_xyzt_units()[0]]
    except Exception:  # a quaternion that is none
        return ("the quaternion of the NIfTI header cannot be read: the sform is used",)
    if not apart_mm <= FORM_DISAGREEMENT_MM:
        return (f"sform and qform of the NIfTI header differ by up to {apart_mm:.0f} mm: the sform is used",)
    return ()

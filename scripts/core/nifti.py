"""Volumes as NIfTI files."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from .files import replacing

# NIfTI xform code 1, "scanner anatomical": the affine maps to the scanner's own millimetres.
_SCANNER = 1
# Label volumes are almost all zeros: the fastest level compresses within a few percent of the best.
_COMPRESSION = 1


def write_nifti(path: Path, array: npt.NDArray[Any], affine_ras: npt.ArrayLike, description: str = "") -> Path:
    """Write a volume atomically; the same content always gives the same bytes.

    Args:
        path: ends in .nii or .nii.gz.
        array: ``[I, J, K]``.
        affine_ras: ``[4, 4]``, voxel to RAS mm. It is stored as the sform, and as the qform unless it is sheared.
        description: the header's description, at most 79 characters.

    Raises:
        OutputError: the file cannot be written.
    """
    affine = np.asarray(affine_ras, dtype=np.float64)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description.encode()
    image.set_sform(affine, code=_SCANNER)
    try:
        image.header.set_qform(affine, code=_SCANNER, strip_shears=False)
    except HeaderDataError:  # a qform cannot represent shears
        image.header.set_qform(None, code=0)
    with replacing(path) as new, new.open("wb") as raw:
        packed = gzip.GzipFile("", "wb", _COMPRESSION, cast(BinaryIO, raw), mtime=0)
        with packed if path.suffix == ".gz" else contextlib.nullcontext(raw) as file:
            image.to_stream(file)  # slice by slice: the whole volume is never in memory as bytes
    return path

"""The nodules' outlines as a NIfTI volume on the scan's own grid."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from ..core.files import write_bytes
from ..core.geometry import spacing_mm
from ..core.records import ScanResult

# NIfTI xform code 1, "scanner anatomical": the affine leads to the scanner's own millimetres.
_SCANNER = 1
# Label volumes are nearly all zeros: the fastest level is within a few percent of the best.
_COMPRESSION = 1


class MaskNifti:
    """Write ``mask.nii.gz``: instance labels (0 = background) on the scan's own grid, RAS affine, mm."""

    filename = "mask.nii.gz"

    def __call__(self, result: ScanResult, folder: Path) -> Path:
        """Write into ``folder``: uint8, or uint16 above 255 nodules; a scan without nodules gives zeros.

        The same result gives the same bytes.

        Raises:
            OutputError: the file cannot be written.
        """
        packed = io.BytesIO()
        with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=_COMPRESSION, mtime=0) as file:
            mask_image(result).to_stream(file)  # slice by slice: the volume is never there as bytes
        return write_bytes(folder / self.filename, packed.getvalue())


def mask_image(result: ScanResult) -> nib.Nifti1Image:
    """The instance mask with its geometry: sform always; qform too unless the grid is sheared, which it cannot say."""
    affine = np.asarray(result.affine_ras, dtype=np.float64)
    dtype = np.uint8 if result.mask.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16
    image = nib.Nifti1Image(result.mask.astype(dtype), affine)
    header = image.header
    header.set_xyzt_units("mm")
    header["descrip"] = b"lung nodules, instance labels"
    image.set_sform(affine, code=_SCANNER)
    try:
        header.set_qform(affine, code=_SCANNER, strip_shears=False)
    except HeaderDataError:
        header.set_qform(None, code=0)
    header.set_zooms(spacing_mm(affine))
    return image

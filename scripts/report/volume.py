"""The nodules' outlines as a NIfTI volume on the scan's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..core.nifti import write_nifti
from ..core.records import ScanResult


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

"""Replacements for the lung network: the true parts of a synthetic chest, or parts found by thresholds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from scripts.core.labels import Part, Parts
from scripts.phantom.chest import Chest
from scripts.preprocess.lung_search import CoarseScan, LungSearch, coarse_scan


class PartsByDensity(LungSearch):
    """Body is dense, lung is between -960 and -500 HU, the rest is outside; the first half along i is the left lung."""

    def __init__(self) -> None:
        super().__init__(checkpoint="")

    def __call__(self, scan: CoarseScan) -> Parts:
        parts = np.where(scan.hu > -300, np.uint8(Part.BODY), np.uint8(Part.OUTSIDE))
        lung = ndimage.binary_opening((scan.hu > -960) & (scan.hu < -500), np.ones((3, 3, 3)))  # no partial volume
        side = np.where(np.arange(len(scan.hu)) < len(scan.hu) / 2, Part.LEFT_LUNG, Part.RIGHT_LUNG).astype(np.uint8)
        return np.where(lung, side[:, None, None], parts)


class TrueParts(LungSearch):
    """The true lungs of a synthetic chest, for a scan on its whole grid in RAS order; the body is what is not air."""

    def __init__(self, chest: Chest) -> None:
        super().__init__(checkpoint="")
        self.chest = chest

    def __call__(self, scan: CoarseScan) -> Parts:
        middle = [np.argwhere(self.chest.lungs == label)[:, 0].mean() for label in (1, 2)]
        left, right = (1, 2) if middle[0] < middle[1] else (2, 1)
        shares = [_share(self.chest.lungs == label, self.chest.affine_ras) for label in (left, right)]
        body = ndimage.binary_fill_holes((scan.hu > -300) | (shares[0] + shares[1] > 0.5))
        parts = np.where(body, np.uint8(Part.BODY), np.uint8(Part.OUTSIDE))
        for share, part in zip(shares, (Part.LEFT_LUNG, Part.RIGHT_LUNG), strict=True):
            parts[share > 0.5] = part
        return parts


def _share(mask: npt.NDArray[np.bool_], affine_ras: np.ndarray) -> npt.NDArray[np.float32]:
    return coarse_scan(mask.astype(np.float32), affine_ras).hu

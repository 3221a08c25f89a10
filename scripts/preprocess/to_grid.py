"""The path from a scan as read to the voxels of the network, the same in training, evaluation and search."""

from __future__ import annotations

from collections.abc import Sequence

from monai.transforms import Compose, Orientationd

from .lung_search import LungSearch
from .lungs import CropToLungsd
from .resampling import ToSpacingd


def scan_to_grid(
    lungs: LungSearch,
    *,
    spacing_mm: Sequence[float],
    margin_mm: float,
    region: str = "lungs",
    whole_key: str | None = None,
) -> Compose:
    """Build the transform that crops ``image`` (and ``mask``, if there is one) to the lungs and resamples it in RAS.

    Args:
        lungs: finds the lungs; an item's ``lung_mask`` takes its place.
        spacing_mm: ``[3]``, the spacing to resample to.
        margin_mm: what is kept around the lungs.
        region, whole_key: see :class:`.lungs.CropToLungsd`, also for the keys that are written.

    Returns:
        A transform that leaves ``image`` as int16 HU.
    """
    keys = ["image", "mask"]
    return Compose(
        [
            CropToLungsd(keys, lungs, margin_mm, region=region, allow_missing_keys=True, whole_key=whole_key),
            Orientationd(keys, axcodes="RAS", labels=None, allow_missing_keys=True),
            ToSpacingd(keys, spacing_mm, modes=["bilinear", "nearest"], allow_missing_keys=True),
        ]
    )

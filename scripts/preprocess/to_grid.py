"""The one way from a scan as read to the voxels that are trained on, evaluated and searched."""

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
    """Cut ``image`` (and ``mask``, where there is one) to the lungs, turn both to RAS, and bring them to a spacing.

    Args:
        lungs: finds them; a given ``lung_mask`` takes its place.
        spacing_mm: ``[3]``.
        margin_mm: kept around the lungs.
        region, whole_key: see :class:`.lungs.CropToLungsd`, also for what is written.

    Returns:
        A transform after which ``image`` is int16 HU.
    """
    keys = ["image", "mask"]
    return Compose(
        [
            CropToLungsd(keys, lungs, margin_mm, region=region, allow_missing_keys=True, whole_key=whole_key),
            Orientationd(keys, axcodes="RAS", labels=None, allow_missing_keys=True),
            ToSpacingd(keys, spacing_mm, modes=["bilinear", "nearest"], allow_missing_keys=True),
        ]
    )

"""Real against inserted: what is told apart when there is something to tell by, and what the network sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_roc_auc

from tools.inserted import EDGE, FOLDS, LUNG_HU, RANGE_HU, _scores, _seen


def _area(real: torch.Tensor, put: torch.Tensor) -> float:
    """Area under the ROC curve of the scores of all folds."""
    scores = torch.stack([_scores(real, put, fold) for fold in range(FOLDS)])
    assert ((scores != 0).sum(0) == 1).all()  # each donor is scored by the one network that has not seen it
    return float(compute_roc_auc(scores.sum(0).flatten(), torch.tensor([[1.0], [0.0]]).expand(2, len(real)).flatten()))


@pytest.mark.parametrize(("halo", "least", "most"), [(0.0, 0.3, 0.7), (0.5, 0.95, 1.0)])
def test_a_halo_gives_inserted_nodules_away_and_equal_ones_are_not_told_apart(
    halo: float, least: float, most: float
) -> None:
    images = torch.rand(2, 90, 1, 9, 9, 9, generator=torch.Generator().manual_seed(0))
    images[1, ..., 2:4, 3:6, 3:6] += halo
    assert least <= _area(images[0], images[1]) <= most


def test_what_is_seen_is_centred_scaled_and_ends_two_voxels_beyond_the_mask() -> None:
    hu = np.full((40, 40, 40), LUNG_HU + RANGE_HU, dtype=np.float32)
    inside = np.zeros(hu.shape, dtype=bool)
    inside[3:6, 20:23, 30:33] = True  # its middle voxel is (4, 21, 31); the volume ends 4 voxels below
    seen = _seen(hu, inside)
    assert seen.shape == (EDGE,) * 3
    where = np.argwhere(seen) - EDGE // 2
    assert where.min(0).tolist() == [-3, -3, -3]
    assert where.max(0).tolist() == [3, 3, 3]
    assert set(np.unique(seen)) == {0.0, 1.0}

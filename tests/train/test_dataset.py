"""Training data: a stream of crops that never depends on the order."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

import numpy as np
import pytest
from monai.transforms import Compose

from scripts.core.labels import IGNORED, NODULE
from scripts.train import RandomCropd
from scripts.train.cache import CachedScans, ScanCache
from scripts.train.dataset import CropDataset, EpochSampler

# --- CropDataset


ORIGIN_RAS_MM = (-10.0, 20.0, 30.0)


class FakeScans(CachedScans):
    """Scans in memory; scan n has the intensity -800 - n everywhere."""

    def __init__(self, items: list[dict[str, Any]], cache: ScanCache) -> None:
        super().__init__([{"name": "", "weight": 1.0, **item} for item in items], cache)
        self.items = items

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.items[index]
        rows = np.array(item.get("nodule", []), dtype=np.float32).reshape(-1, 4)
        image = np.full((30, 31, 32), -800 - index, dtype=np.int16)
        affine = np.eye(4)
        affine[:3, 3] = ORIGIN_RAS_MM
        return {
            **{"image": image, "lung": item.get("lung", np.ones(image.shape, dtype=np.uint8)), "affine": affine},
            **{"nodule": rows, "label": np.array(item.get("label", [NODULE] * len(rows)), dtype=np.int64)},
        }


def _crops(items: list[dict[str, Any]], *transforms: Any, seed: int = 0, **shares: float) -> CropDataset:
    """Without a transform these are whole scans, each with the centre that was chosen for its crop."""
    with mock.patch("scripts.train.dataset.CachedScans", FakeScans):
        return CropDataset(
            items, ScanCache(dict, ""), Compose(transforms), seed=seed, **{"nodule_share": 0.0, **shares}
        )


def _centres(crops: CropDataset, count: int) -> Counter[tuple[float, ...]]:
    return Counter(tuple(crops[n]["centre"].tolist()) for n in range(count))


TWO_SCANS: list[dict[str, Any]] = [{"nodule": [[10, 11, 12, 6], [20, 20, 20, 25]]}, {"nodule": [[15, 15, 15, 8]]}]


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    assert set(first) == set(second)
    return all(np.array_equal(first[name], second[name]) for name in first)


def test_the_same_index_gives_the_same_crop_in_any_order() -> None:
    crop = RandomCropd(9, jitter=0.3, turns=True, rotate_degrees=15.0, scale=(0.8, 1.25))
    forwards, backwards, other = (_crops(TWO_SCANS, crop, seed=seed, nodule_share=0.5) for seed in (0, 0, 1))
    first = [forwards[n] for n in range(12)]
    second = [backwards[n] for n in reversed(range(12))][::-1]
    np.testing.assert_equal([*second, forwards[3]], [*first, first[3]])
    assert sum(_same(other[n], first[n]) for n in range(12)) < 6  # crops without a nodule may be alike here
    assert len({tuple(item["nodule"].ravel()) for item in first}) > 6  # the crops differ


def test_scans_are_drawn_by_their_weight_and_nodules_by_their_size() -> None:
    crops = _crops([{"weight": 1.0}, {"weight": 0.0}, {"weight": 3.0}, {}])
    drawn = np.bincount([-800 - crops[n]["image"][0, 0, 0] for n in range(1000)], minlength=4)
    np.testing.assert_allclose(drawn, [200, 0, 600, 200], atol=50)  # 3 to 4 standard deviations
    assert drawn[1] == 0
    ignored = {"nodule": [[5, 5, 5, 40]], "label": [IGNORED]}  # never a centre
    counts = _centres(_crops([*TWO_SCANS, ignored], nodule_share=1.0), 900)
    # Weights 1, √7, 1.
    assert counts == pytest.approx({(10, 11, 12): 194, (20, 20, 20): 512, (15, 15, 15): 194}, abs=45)


def test_shares_are_those_of_crops_around_a_false_finding_and_of_the_others_around_a_nodule() -> None:
    """Positions of false findings are LPS mm."""
    items = [{"nodule": [[15.5, 15.5, 15.5, 8]]}, {"false_findings": [[6.0, -23.0, 35.0], [5.0, -22.0, 34.0]]}]
    false, nodule = [(4.0, 3.0, 5.0), (5.0, 2.0, 4.0)], (15.5, 15.5, 15.5)
    both = _centres(_crops(items, nodule_share=1.0, false_share=0.25), 800)
    assert both == pytest.approx({**dict.fromkeys(false, 100), nodule: 600}, abs=40)
    assert _centres(_crops(items[:1], nodule_share=0.25), 800)[nodule] == pytest.approx(200, abs=50)


@pytest.mark.parametrize("rows", [{}, {"nodule": [[5, 5, 5, 6]], "label": [IGNORED]}], ids=["none", "ignored"])
def test_without_nodules_every_crop_is_around_parenchyma_in_the_lung(rows: dict[str, Any]) -> None:
    lung = np.zeros((30, 31, 32), dtype=np.uint8)
    without = _crops([{"lung": lung.copy(), **rows}], nodule_share=1.0)[0]["centre"]
    assert np.all((without >= 0) & (without < lung.shape))  # somewhere
    lung[4:12, 6:20, 8:20] = 1
    centres = _centres(_crops([{"lung": lung, **rows}], nodule_share=1.0), 40)
    assert all(lung[centre] for centre in centres)  # 200 draws miss it once in ten thousand
    assert len(centres) > 30


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([], "expected at least one scan, got none; --dataset_dir must hold"),
        ([{"weight": 0.0}, {"weight": 0.0}], "expected weights from 0, one of them above 0"),
        ([{"weight": 1.0}, {"weight": -1.0}], "expected weights from 0, one of them above 0"),
    ],
)
def test_lists_that_give_no_crop_are_refused(items: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=f"training list: {said}"):
        _crops(items)


# --- EpochSampler


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_share_out_every_epoch(ranks: int) -> None:
    samplers = [EpochSampler(4, rank=rank, ranks=ranks) for rank in range(ranks)]
    for epoch in (3, 1, 2, 2):  # the same numbers again until told of another epoch
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert all(len(share) == len(sampler) == 4 for share, sampler in zip(shares, samplers, strict=True))
        first = 4 * ranks * (epoch - 1)
        assert [share[0] for share in shares] == [first + rank for rank in range(ranks)]
        assert sorted(number for share in shares for number in share) == list(range(first, first + 4 * ranks))

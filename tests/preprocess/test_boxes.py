"""From boxes in LPS millimetres to rows in voxels, and to a fixed number of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from scripts.core.errors import DataError
from scripts.core.labels import IGNORED, NODULE, PADDING
from scripts.preprocess import BoxesToNodulesd, PadNodulesd

IDENTITY = np.eye(4)
# x = 10 - j / 2, y = 2 k - 7, z = 4 i + 1
PERMUTED = np.array([[0, -0.5, 0, 10], [0, 0, 2, -7], [4, 0, 0, 1], [0, 0, 0, 1]])
# turned about z by the angle whose cosine is 0.6: x = 0.6 i - 0.8 j, y = 0.8 i + 0.6 j, z = 2 k
OBLIQUE = np.array([[0.6, -0.8, 0, 0], [0.8, 0.6, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


def _image(affine: np.ndarray) -> MetaTensor:
    return MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.from_numpy(affine), meta={"filename_or_obj": "ct.nii.gz"})


@pytest.mark.parametrize(
    ("affine", "centre_lps_mm", "voxel"),
    [
        (IDENTITY, (-3.0, -4.0, 5.0), (3.0, 4.0, 5.0)),
        (np.diag([-1.0, -1.0, 1.0, 1.0]), (3.0, 4.0, 5.0), (3.0, 4.0, 5.0)),
        (PERMUTED, (-8.5, -1.0, 9.0), (2.0, 3.0, 4.0)),
        (OBLIQUE, (5.0, -10.0, 6.0), (5.0, 10.0, 3.0)),
    ],
    ids=["ras", "lps", "permuted", "oblique"],
)
def test_centre_in_lps_becomes_a_voxel(
    affine: np.ndarray, centre_lps_mm: tuple[float, ...], voxel: tuple[float, ...]
) -> None:
    item = BoxesToNodulesd()({"image": _image(affine), "box": [[*centre_lps_mm, 3.0, 6.0, 9.0]], "label": [0]})
    assert item.keys() == {"image", "nodule", "label"}
    assert (item["nodule"].dtype, item["label"].dtype) == (np.float32, np.int64)
    np.testing.assert_allclose(item["nodule"], [[*voxel, 6.0]], atol=1e-5)  # the mean of the three sizes


def test_rows_keep_the_order_of_the_boxes_and_the_input_stays() -> None:
    boxes, labels = ((-1.0, -1.0, 1.0, 4, 4, 4), (-2.0, -2.0, 2.0, 5, 5, 5)), (NODULE, IGNORED)
    data = {"image": _image(IDENTITY), "box": boxes, "label": labels}
    item = BoxesToNodulesd()(data)
    np.testing.assert_allclose(item["nodule"], [[1, 1, 1, 4], [2, 2, 2, 5]])
    assert item["label"].tolist() == [NODULE, IGNORED]
    assert (data["box"], data["label"]) == (boxes, labels)


@pytest.mark.parametrize("data", [{"box": [], "label": []}, {"box": []}, {}], ids=["empty", "no label", "neither"])
def test_no_boxes_give_no_rows(data: dict[str, list[float]]) -> None:
    item = BoxesToNodulesd()({"image": _image(OBLIQUE), **data})
    assert (item["nodule"].shape, item["nodule"].dtype, item["label"].shape) == ((0, 4), np.float32, (0,))


def test_boxes_without_labels_are_nodules() -> None:
    item = BoxesToNodulesd()({"image": _image(IDENTITY), "box": [[0, 0, 0, 3, 3, 3]] * 2})
    assert item["label"].tolist() == [NODULE, NODULE]


@pytest.mark.parametrize(("name", "said"), [({}, r"ct\.nii\.gz"), ({"name": "case-7"}, "case-7")])
def test_labels_and_boxes_must_be_as_many(name: dict[str, str], said: str) -> None:
    data = {"image": _image(IDENTITY), "box": [[0, 0, 0, 3, 3, 3]], "label": [0, 0], **name}
    with pytest.raises(ValueError, match=said + ": expected one label per box, got 1 boxes and 2 labels"):
        BoxesToNodulesd()(data)


def test_padding_fills_up_to_the_rows() -> None:
    data = {"nodule": np.array([[1, 2, 3, 4]], dtype=np.float32), "label": np.array([IGNORED]), "other": 5}
    item = PadNodulesd(3)(data)
    assert item["nodule"].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert (item["label"].tolist(), item["label"].dtype) == ([IGNORED, PADDING, PADDING], torch.int64)
    assert (item["other"], len(data["label"])) == (5, 1)


@pytest.mark.parametrize("count", [0, 2])
def test_padding_takes_none_and_as_many_as_there_are_rows(count: int) -> None:
    item = PadNodulesd(2)({"nodule": np.ones((count, 4), np.float32), "label": np.zeros(count, np.int64)})
    assert item["nodule"].shape == (2, 4)
    assert (item["label"] == NODULE).sum() == count


def test_padding_refuses_more_than_its_rows() -> None:
    with pytest.raises(ValueError, match="expected at most 2 nodules in a crop, got 3; raise PadNodulesd's rows"):
        PadNodulesd(2)({"nodule": np.ones((3, 4), np.float32), "label": np.zeros(3, np.int64)})


# --- masks


def _with_mask(*spots: tuple[int, int]) -> dict[str, Any]:
    """Two boxes of 4 mm around voxels 3.5 and 11.5 of 2 mm, and cubes of these (value, first voxel along i)."""
    affine, values = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])), torch.zeros(1, 16, 6, 6)
    image = MetaTensor(values.clone(), affine=affine)
    for value, first in spots:
        values[0, first : first + 2, 2:4, 2:4] = value
    mask = MetaTensor(values, affine=affine, meta={"filename_or_obj": "mask.nii.gz"})
    boxes = [[-x, -5.0, 5.0, 4.0, 4.0, 4.0] for x in (7.0, 23.0)]
    return {"image": image, "mask": mask, "box": boxes, "label": [NODULE, IGNORED]}


@pytest.mark.parametrize("spots", [((1, 3), (2, 11)), ((2, 11),), ()], ids=["both", "one", "none"])
def test_a_mask_may_leave_rows_out(spots: tuple[tuple[int, int], ...]) -> None:
    assert BoxesToNodulesd()(_with_mask(*spots))["nodule"].shape == (2, 4)


@pytest.mark.parametrize(
    ("spots", "words"),
    [
        # in another order; 0 and 1 only; other numbers
        (((2, 3), (1, 11)), r"expected value 1 around box 0 \(4 mm\), got 4 mm of it, its centre 16 mm away"),
        (((1, 3), (1, 11)), r"expected value 1 around box 0 \(4 mm\), got 20 mm of it, its centre 8 mm away"),
        (((101, 3), (102, 11)), r"expected values 0 to 2, got 0 to 102"),
        (((-1, 3),), r"expected values 0 to 2, got -1 to 0"),
    ],
)
def test_a_mask_that_is_numbered_otherwise_is_refused(spots: tuple[tuple[int, int], ...], words: str) -> None:
    with pytest.raises(DataError, match=rf"mask\.nii\.gz: {words}.* a nodule's value is its number in the datalist"):
        BoxesToNodulesd()(_with_mask(*spots))


def test_an_outline_may_lie_beside_the_centre_of_its_box() -> None:
    """By the diameter, 4 mm, and 5 mm more: 8 mm pass, 10 mm do not."""
    BoxesToNodulesd()(_with_mask((1, 7)))
    with pytest.raises(DataError, match="10 mm away"):
        BoxesToNodulesd()(_with_mask((1, 8)))

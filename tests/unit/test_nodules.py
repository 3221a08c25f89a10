"""From boxes in LPS millimetres to rows in voxels, and to a fixed number of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, box_utils

from scripts.transforms import IGNORED, NODULE, PADDING, BoxesToNodulesd, PadNodulesd

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
    assert "box" not in item
    assert item["nodule"].dtype == np.float32
    np.testing.assert_allclose(item["nodule"], [[*voxel, 6.0]], atol=1e-5)  # the mean of the three sizes
    assert item["label"].dtype == np.int64
    assert item["label"].tolist() == [NODULE]


def test_rows_keep_the_order_of_the_boxes() -> None:
    boxes = [[-1.0, -1.0, 1.0, 4, 4, 4], [-2.0, -2.0, 2.0, 5, 5, 5], [-3.0, -3.0, 3.0, 6, 6, 6]]
    item = BoxesToNodulesd()({"image": _image(IDENTITY), "box": boxes, "label": [NODULE, IGNORED, NODULE]})
    np.testing.assert_allclose(item["nodule"], [[1, 1, 1, 4], [2, 2, 2, 5], [3, 3, 3, 6]])
    assert item["label"].tolist() == [NODULE, IGNORED, NODULE]


def test_another_image_may_decide() -> None:
    data = {"image": _image(IDENTITY), "scan": _image(PERMUTED), "box": [[-8.5, -1.0, 9.0, 6, 6, 6]]}
    np.testing.assert_allclose(BoxesToNodulesd("scan")(data)["nodule"][0, :3], [2, 3, 4], atol=1e-6)


@pytest.mark.parametrize("data", [{"box": [], "label": []}, {"box": []}, {}], ids=["empty", "no label", "neither"])
def test_no_boxes_give_no_rows(data: dict[str, list[float]]) -> None:
    item = BoxesToNodulesd()({"image": _image(OBLIQUE), **data})
    assert item["nodule"].shape == (0, 4)
    assert item["nodule"].dtype == np.float32
    assert item["label"].shape == (0,)


def test_boxes_without_labels_are_nodules() -> None:
    item = BoxesToNodulesd()({"image": _image(IDENTITY), "box": [[0, 0, 0, 3, 3, 3]] * 2})
    assert item["label"].tolist() == [NODULE, NODULE]


@pytest.mark.parametrize(("name", "said"), [({}, r"ct\.nii\.gz"), ({"name": "case-7"}, "case-7")])
def test_labels_and_boxes_must_be_as_many(name: dict[str, str], said: str) -> None:
    data = {"image": _image(IDENTITY), "box": [[0, 0, 0, 3, 3, 3]], "label": [0, 0], **name}
    with pytest.raises(ValueError, match=said + ": expected one label per box, got 1 boxes and 2 labels"):
        BoxesToNodulesd()(data)


def test_input_stays_as_it_is() -> None:
    data = {"image": _image(IDENTITY), "box": [[-1.0, -2.0, 3.0, 4.0, 4.0, 4.0]], "label": [0]}
    BoxesToNodulesd()(data)
    assert data["box"] == [[-1.0, -2.0, 3.0, 4.0, 4.0, 4.0]]
    assert data["label"] == [0]


def test_boxes_are_monais_own_centre_and_size() -> None:
    """MONAI's LUNA16 folds give the mode "cccwhd": the corners lie half a size from the centre."""
    corners = box_utils.convert_box_mode(torch.tensor([[-3.0, -4.0, 5.0, 2.0, 4.0, 6.0]]), "cccwhd", "xyzxyz")
    assert corners.tolist() == [[-4.0, -6.0, 2.0, -2.0, -2.0, 8.0]]
    item = BoxesToNodulesd()({"image": _image(IDENTITY), "box": [[-3.0, -4.0, 5.0, 2.0, 4.0, 6.0]]})
    np.testing.assert_allclose(item["nodule"], [[3, 4, 5, 4]])


def test_padding_fills_up_to_the_rows() -> None:
    data = {"nodule": np.array([[1, 2, 3, 4]], dtype=np.float32), "label": np.array([IGNORED]), "other": 5}
    item = PadNodulesd(3)(data)
    assert item["nodule"].tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert item["label"].tolist() == [IGNORED, PADDING, PADDING]
    assert item["label"].dtype == torch.int64
    assert item["other"] == 5
    assert len(data["label"]) == 1


@pytest.mark.parametrize("count", [0, 2])
def test_padding_takes_none_and_as_many_as_there_are_rows(count: int) -> None:
    item = PadNodulesd(2)({"nodule": np.ones((count, 4), np.float32), "label": np.zeros(count, np.int64)})
    assert item["nodule"].shape == (2, 4)
    assert (item["label"] == NODULE).sum() == count


def test_padding_refuses_more_than_its_rows() -> None:
    with pytest.raises(ValueError, match="expected at most 2 nodules in a crop, got 3; raise PadNodulesd's rows"):
        PadNodulesd(2)({"nodule": np.ones((3, 4), np.float32), "label": np.zeros(3, np.int64)})

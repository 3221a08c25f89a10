"""Chests as they may come: what augmentation may change, the loss, the list of scans, and the score of read points."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.core.labels import Part, is_lung
from scripts.evaluate.lungs import is_right
from scripts.phantom.chest import Chest
from scripts.preprocess.lung_search import coarse_scan
from scripts.preprocess.lungs import NEVER_MM
from scripts.read.datalist import DatalistError
from scripts.train.lung_augmentation import (
    CellsToNetworkd,
    RandChestd,
    other_surroundings,
    padded_beyond_circle,
    partial_view,
    sick,
)
from scripts.train.lung_training import PartsLoss, parts_list
from tests.bundle import ROOT
from tests.parts import TrueParts


@pytest.fixture(scope="module")
def cells(full_chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    scan = coarse_scan(full_chest.image_hu, full_chest.affine_ras)
    return scan.hu, TrueParts(full_chest)(scan)


def test_each_change_stays_where_it_belongs(cells: tuple[np.ndarray, np.ndarray]) -> None:
    """Sickness in lungs and airways, surroundings outside the lungs, padding outside the body."""
    hu, parts = cells
    lungs, changed = is_lung(parts), 0
    for seed in range(30):
        unwell = sick(np.random.RandomState(seed), hu, parts)
        elsewhere = other_surroundings(np.random.RandomState(seed), hu, parts)
        padded, labels = padded_beyond_circle(np.random.RandomState(seed), hu, parts)
        assert np.all(lungs | (parts == Part.AIRWAY) | (unwell == hu))
        assert np.all(~lungs | (elsewhere == hu))
        assert np.all(labels[padded != hu] == Part.OUTSIDE)
        changed += not np.array_equal(unwell, hu)
    assert changed > 20


def test_a_view_is_a_box_of_the_scan(cells: tuple[np.ndarray, np.ndarray]) -> None:
    _, parts = cells
    shapes = {parts[partial_view(np.random.RandomState(seed), parts)].shape for seed in range(60)}
    assert parts.shape in shapes
    assert min(map(min, shapes)) >= 1
    assert len(shapes) > 30


def test_a_chest_is_reproducible_and_fits_the_network(cells: tuple[np.ndarray, np.ndarray]) -> None:
    item = dict(zip(("image", "label"), cells, strict=True))
    first, again = (CellsToNetworkd(8.0)(RandChestd().set_random_state(5)(item)) for _ in range(2))
    assert torch.equal(first["image"], again["image"])
    image, label = first["image"], first["label"]
    assert (image.shape[0], label.shape) == (1, (2, *image.shape[1:]))
    assert all(n % 16 == 0 for n in image.shape[1:])
    assert -1 <= image.min() <= image.max() <= 1
    assert set(label[0].unique().tolist()) <= set(map(float, Part))


def test_mirrored_lungs_change_sides(cells: tuple[np.ndarray, np.ndarray]) -> None:
    """Left is where i is small, in every augmented chest that holds both lungs."""
    hu, parts = cells
    for seed in range(10):
        label = RandChestd(sick_share=0.0).set_random_state(seed)({"image": hu, "label": parts})["label"]
        left, right = (np.argwhere(label == side)[:, 0] for side in (Part.LEFT_LUNG, Part.RIGHT_LUNG))
        assert min(len(left), len(right)) < 500 or left.mean() < right.mean()


def test_the_loss_falls_with_the_right_answer_and_weighs_cells() -> None:
    loss = PartsLoss([1.0] * 5, [0.0, 0.0, 0.5, 0.5, 0.5])
    label = torch.zeros(1, 2, 4, 4, 4)  # parts, and weights of the cells
    label[:, 0, ..., :2] = Part.LEFT_LUNG
    label[:, 1] = 1.0
    right = 8.0 * torch.nn.functional.one_hot(label[:, 0].long(), 5).movedim(-1, 1).float()
    wrong = right.clone()
    wrong[..., 0] = wrong[..., 0].roll(1, dims=1)
    assert loss(right, label) < 0.1 < loss(wrong, label)
    heavier = label.clone()
    heavier[:, 1, ..., 0] = 4.0
    assert loss(wrong, heavier) > 2 * loss(wrong, label)


def test_the_list_of_parts_leaves_collections_out(tmp_path: Path) -> None:
    rows = [{"image": f"{n}.nii", "label": f"{n}.nii.gz", "collection": c} for n, c in (("a", "one"), ("b", "two"))]
    path = tmp_path / "datalist.json"
    path.write_text(json.dumps({"scans": rows}))
    for name in ("a.nii", "a.nii.gz", "b.nii"):
        (tmp_path / name).touch()
    kept = parts_list(str(path), str(tmp_path), held_out=["two"])
    assert kept == [{"image": str(tmp_path / "a.nii"), "label": str(tmp_path / "a.nii.gz")}]
    with pytest.raises(DatalistError, match=r"got none at .*b\.nii\.gz"):
        parts_list(str(path), str(tmp_path))
    with pytest.raises(DatalistError, match=r"expected collections of .* \(one, two\), got three"):
        parts_list(str(path), str(tmp_path), held_out=["three"])


def test_the_projects_own_parts_are_complete() -> None:
    folder = ROOT / "docs" / "readings" / "lung_parts"
    scans = json.loads((folder / "datalist.json").read_text())["scans"]
    assert {scan["label"] for scan in scans} == {path.name for path in folder.glob("*.nii.gz")}
    for scan in scans:
        label = nib.Nifti1Image.from_filename(folder / scan["label"])
        assert nib.aff2axcodes(label.affine) == ("R", "A", "S")
        values = np.unique(np.asarray(label.dataobj))
        assert {Part.BODY, Part.LEFT_LUNG, Part.RIGHT_LUNG, Part.AIRWAY} <= set(values.tolist()) <= set(Part)


@pytest.mark.parametrize(
    ("kind", "part", "distance_mm", "right"),
    [
        ("lung", Part.LEFT_LUNG, 0.0, True),
        ("lesion_in_lung", Part.BODY, 10.0, True),
        ("consolidation", Part.BODY, 10.1, False),
        ("bowel", Part.BODY, 9.0, False),
        ("outside", Part.OUTSIDE, NEVER_MM, True),
        ("outside", Part.OUTSIDE, 9.0, False),
        ("soft_tissue", Part.BODY, 0.0, True),
        ("soft_tissue", Part.RIGHT_LUNG, 0.0, False),
        ("trachea", Part.AIRWAY, NEVER_MM, True),
    ],
)
def test_what_is_right_at_a_point(kind: str, part: int, distance_mm: float, right: bool) -> None:
    assert is_right(kind, part, distance_mm) is right

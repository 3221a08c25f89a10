"""Objects of a mask and rows of a datalist: matched by world position, painted on any grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec

from scripts.core.geometry import FloatArray, apply_affine, swap_lps_ras
from scripts.core.nifti import write_nifti
from scripts.read.instances import Labels, Match, instance_mask, labels_of, match_rows, on_grid, separated, things_of
from scripts.read.scan import Grid, ScanError
from tests.luna16_files import SHAPE

AFFINE = from_matvec(np.diag([2.0, 2.0, 2.5]), (-30.0, -40.0, -120.0))


def labels(*boxes: tuple[int, int, int, int]) -> Labels:
    """Cubes of 3 voxels: value and first voxel of each."""
    values = np.zeros(SHAPE, np.uint16)
    for value, i, j, k in boxes:
        values[i : i + 3, j : j + 3, k : k + 3] = value
    return Labels(values, AFFINE)


def place(voxel: tuple[float, float, float], diameter_mm: float = 6.0) -> tuple[float, ...]:
    return (*swap_lps_ras(apply_affine(AFFINE, voxel)).tolist(), diameter_mm)


def painted(source: Labels, rows: list[Any], shape: tuple[int, ...], affine: FloatArray) -> tuple[Any, list[Match]]:
    """Mask of the rows on a grid, and what became of each."""
    return instance_mask(source, match_rows(source, rows), Grid(shape, affine))


def test_things_are_measured_in_world_millimetres() -> None:
    (thing,) = things_of(labels((4, 2, 3, 5)))
    np.testing.assert_allclose(thing.centre_lps_mm, place((3, 4, 6))[:3])
    np.testing.assert_allclose(thing.size_lps_mm, (6.0, 6.0, 7.5))
    assert (thing.value, thing.volume_mm3) == (4, pytest.approx(27 * 10.0))


FAR, TAKEN = (
    "the mask has no object at its centre or within its radius",
    "its object in the mask belongs to another nodule",
)


@pytest.mark.parametrize(
    ("objects", "rows", "found"),
    [
        pytest.param(
            [(1, 0, 0, 0), (2, 4, 0, 0)],
            [(7, place((1, 1, 1))), (3, place((5, 1, 1), 30.0))],
            [(7, 1, 0.0, ""), (3, 2, 0.0, "")],
            id="the object that its centre lies in comes before a nearer one",
        ),
        pytest.param([(1, 0, 0, 0)], [(0, place((3.0, 1, 1), 8.0))], [(0, 1, 4.0, "")], id="within its radius"),
        pytest.param([(1, 0, 0, 0)], [(0, place((3.1, 1, 1), 8.0))], [(0, None, np.nan, FAR)], id="beyond its radius"),
        pytest.param(
            [(1, 0, 0, 0)],
            [(0, place((2, 1, 1))), (1, place((1, 1, 1)))],
            [(0, None, np.nan, TAKEN), (1, 1, 0.0, "")],
            id="an object belongs to one row",
        ),
        pytest.param([], [(0, place((1, 1, 1)))], [(0, None, np.nan, "the mask is empty")], id="an empty mask"),
        pytest.param([(1, 0, 0, 0)], [], [], id="no rows"),
    ],
)
def test_which_object_belongs_to_a_row(objects: list[Any], rows: list[Any], found: list[Any]) -> None:
    matches = match_rows(labels(*objects), rows)
    assert [(m.row, m.thing and m.thing.value, m.reason) for m in matches] == [(n, v, why) for n, v, _, why in found]
    assert [m.distance_mm for m in matches] == pytest.approx([one[2] for one in found], nan_ok=True)


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_one_grid_in_another_order_gives_the_same_voxels(
    axes: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    source = labels((1, 2, 3, 5), (9, 7, 9, 1))
    wanted = np.where(source.values == 9, 1, np.where(source.values == 1, 2, 0))
    turned = nib.Nifti1Image(wanted.astype(np.uint8), AFFINE).as_reoriented(np.column_stack([axes, flips]))
    mask, matches = painted(source, [(0, place((8, 10, 2))), (1, place((3, 4, 6)))], turned.shape, turned.affine)
    np.testing.assert_array_equal(mask, np.asarray(turned.dataobj))
    assert [m.reason for m in matches] == ["", ""]


def test_a_finer_grid_keeps_the_volume_and_a_row_beyond_255_gets_its_value() -> None:
    finer = AFFINE @ from_matvec(np.eye(3) / 2, [-0.25] * 3)
    mask, _ = painted(labels((1, 2, 3, 5)), [(299, place((3, 4, 6)))], (24, 28, 20), finer)
    assert dict(zip(*np.unique(mask, return_counts=True), strict=True)) == {0: mask.size - 27 * 8, 300: 27 * 8}


@pytest.mark.parametrize(("shift_mm", "lost"), [(0.0, False), (10.0, True), (1000.0, True)])
def test_an_object_that_leaves_the_scan_is_no_outline(shift_mm: float, lost: bool) -> None:
    moved = from_matvec(np.eye(3), (shift_mm, 0, 0)) @ AFFINE
    mask, (match,) = painted(labels((1, 2, 3, 5)), [(0, place((3, 4, 6)))], SHAPE, moved)
    assert (match.thing is None, not mask.any(), "outside the scan" in match.reason) == (lost, lost, lost)


def test_values_stay_as_they_are_on_another_grid() -> None:
    """Also those that 16 bits do not hold: noise falls apart into very many objects."""
    values = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE) * 1000
    np.testing.assert_array_equal(on_grid(Labels(values, AFFINE), Grid(SHAPE, AFFINE)), values)


@pytest.mark.parametrize(
    ("objects", "count"), [([(1, 0, 0, 0), (1, 6, 6, 6)], 2), ([(1, 0, 0, 0), (3, 6, 6, 6)], 2), ([], 0)]
)
def test_a_mask_of_inside_and_outside_is_taken_apart(objects: list[tuple[int, int, int, int]], count: int) -> None:
    assert len(things_of(separated(labels(*objects)))) == count


@pytest.mark.parametrize("value", [0.5, -1.0])
def test_what_is_no_mask_is_refused(value: float, tmp_path: Path) -> None:
    write_nifti(tmp_path / "mask.nii.gz", np.full(SHAPE, value, np.float32), AFFINE)
    with pytest.raises(ScanError, match="expected a mask of whole numbers from"):
        labels_of(tmp_path / "mask.nii.gz")

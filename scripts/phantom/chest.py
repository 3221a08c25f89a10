"""A synthetic chest CT with nodules whose position, size and shape are known exactly.

``make_chest`` renders an anatomy at 1 mm; ``scan_chest`` images it as a scanner would (spacing, slice thickness,
kernel, noise, orientation). All randomness comes from their seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

from ..core.geometry import apply_affine, slice_axis, spacing_mm
from .anatomy import Anatomy, add_airway_tubes, build_anatomy, draw_patient, make_frame
from .grid import Array, Box, Field, Frame, along_axes, inside, smooth_noise
from .nodules import COUNT_PROBABILITY, PhantomNodule, instance_mask, paint_nodules, place_nodules
from .surroundings import surround
from .trees import fill_lungs

Style = Literal["axial", "any"]
MAX_NODULES = 8
SCALES = (0.35, 1.2)  # smaller bodies have no room for a nodule
_MAX_VOXELS = 3.2e7  # of a scan around the trunk; limits it to 100 MB and a few seconds


@dataclass(frozen=True)
class Chest:
    """A synthetic chest before it is scanned: no noise, 1 mm voxels, RAS axes.

    Attributes:
        image_hu: ``[I, J, K]`` float32, including clothes and couch.
        mask: ``[I, J, K]`` uint8, instance labels 1 … N of the nodules, 0 elsewhere.
        lungs: ``[I, J, K]`` uint8, 1 right lung, 2 left lung, 0 elsewhere; vessels and nodules belong to the lungs.
        affine_ras: ``[4, 4]``, voxel to RAS mm.
        nodules: the nodules in the order of their labels; may be empty.
        trunk_box: the part of the grid on which the trunk was rendered; the surroundings lie outside and also inside.
    """

    image_hu: npt.NDArray[np.float32] = field(repr=False)
    mask: npt.NDArray[np.uint8] = field(repr=False)
    lungs: npt.NDArray[np.uint8] = field(repr=False)
    affine_ras: Array
    nodules: tuple[PhantomNodule, ...]
    trunk_box: Box


@dataclass(frozen=True)
class Scan:
    """A scan of a synthetic chest.

    Attributes:
        image_hu: ``[I, J, K]`` int16.
        mask: ``[I, J, K]`` uint8 instance labels on the same grid; 0 outside the nodules.
        affine_ras: ``[4, 4]``, voxel to RAS mm.
        kernel: name of the reconstruction kernel, from the softest, "B20", to the sharpest, "B80".
        thickness_mm: slice thickness.
    """

    image_hu: npt.NDArray[np.int16] = field(repr=False)
    mask: npt.NDArray[np.uint8] = field(repr=False)
    affine_ras: Array
    kernel: str
    thickness_mm: float


def make_chest(seed: int, *, nodules: int | None = None, scale: float = 1.0) -> Chest:
    """Render a synthetic chest.

    ``make_chest(seed, scale=0.4, nodules=2)`` is a miniature for tests: about 155 × 130 × 115 voxels, both lungs
    closed, in about a second.

    Args:
        seed: the same seed gives the same chest, bit for bit on one machine.
        nodules: number of nodules, 0 … 8; ``None`` draws it at random. Fewer are placed if the lungs have no room.
        scale: size factor of the body, in the range :data:`SCALES`; nodules keep their sizes, up to what fits the
            lungs.

    Raises:
        ValueError: ``nodules`` or ``scale`` out of range.
    """
    if nodules is not None and not 0 <= nodules <= MAX_NODULES:
        raise ValueError(f"nodules: expected 0 to {MAX_NODULES}, or None, got {nodules}")
    if not SCALES[0] <= scale <= SCALES[1]:
        raise ValueError(f"scale: expected {SCALES[0]} to {SCALES[1]}, got {scale}")
    rng = np.random.default_rng(seed)
    patient = draw_patient(rng, scale)
    frame = make_frame(patient, rng)
    affine_ras = np.eye(4)
    affine_ras[:3, 3] = frame.origin * frame.stretch + np.round(rng.uniform((-15, -15, -320), (15, 15, -20)), 1)
    anatomy = build_anatomy(patient, frame, rng, np.random.default_rng([seed, 2]))
    image = anatomy.image_hu
    _add_parenchyma(frame, anatomy, rng)
    vessels = fill_lungs(frame, anatomy, patient.blood_hu, rng)
    add_airway_tubes(frame, image)
    count = int(rng.choice(len(COUNT_PROBABILITY), p=COUNT_PROBABILITY)) if nodules is None else nodules
    placed = place_nodules(rng, anatomy, vessels, count, affine_ras)
    paint_nodules(rng, image, placed, anatomy, affine_ras)
    lungs = np.where(anatomy.lung_mm < 0, np.where(anatomy.lobe <= 3, 1, 2), 0).astype(np.uint8)
    del anatomy, vessels  # free memory for the next steps
    wide, box = surround(image, frame, patient, np.random.default_rng([seed, 3]))
    wide_affine_ras = affine_ras.copy()
    wide_affine_ras[:3, 3] -= [s.start for s in box]  # 1 mm voxels along RAS
    wide_lungs = np.pad(lungs, [(s.start, n - s.stop) for s, n in zip(box, wide.shape, strict=True)])
    return Chest(wide, instance_mask(placed, wide_affine_ras, wide.shape), wide_lungs, wide_affine_ras, placed, box)


def _add_parenchyma(frame: Frame, anatomy: Anatomy, rng: np.random.Generator) -> None:
    """Draw lung tissue into the image in place: denser at the back (the patient is supine), lobular, with fissures."""
    where = np.nonzero(anatomy.lung_mm < 1)
    coarse = 9 * smooth_noise(rng, frame.coarse_shape, 14.0 / frame.step)
    coarse += 8 * smooth_noise(rng, frame.coarse_shape, 4.5 / frame.step)
    grain = smooth_noise(rng, frame.shape, 1.6)[where]
    back = 1 - where[1].astype(np.float32) / frame.shape[1]
    tissue = rng.uniform(-925, -893) + rng.uniform(25, 60) * back + frame.upsample(coarse)[where]
    tissue += 17 * grain + 7 * np.maximum(grain, 0) ** 2
    dependent = rng.uniform(15, 110) * np.clip((back - 0.62) / 0.15, 0, 1)
    tissue += dependent * np.exp(np.minimum(anatomy.lung_mm[where], 0) / 3.0)
    tissue += rng.uniform(70, 170) * np.exp(-((anatomy.fissure_mm[where] / 0.75) ** 2))
    anatomy.image_hu[where] += inside(anatomy.lung_mm[where]) * (tissue - anatomy.image_hu[where])


def draw_scan_affine(
    rng: np.random.Generator, chest: Chest, style: Style
) -> tuple[Array, tuple[int, ...], list[list[int]]]:
    """Draw the grid of a scan at random, so that it covers the chest and nearly all of its surroundings.

    The grid is drawn around the trunk and then extended on all sides by whole voxels.

    Args:
        rng: source of spacing and direction.
        chest: the chest to cover.
        style: "axial" (head-first or feet-first axial slices, sometimes slightly oblique: DICOM) or "any" (axes
            permuted and flipped, sometimes oblique: research formats).

    Returns:
        ``[4, 4]`` voxel-to-RAS affine, the grid's shape, and the number of voxels added at both ends of each axis.
    """
    in_plane, slices = rng.uniform(0.6, 0.95), float(rng.choice([0.8, 1.0, 1.25, 1.5, 2.0, 2.5]))
    start, stop = (np.array([float(getattr(s, end)) for s in chest.trunk_box]) for end in ("start", "stop"))
    extent = stop - start - 1
    spacing = np.array([in_plane, in_plane, max(slices, float(np.prod(extent)) / (in_plane**2 * _MAX_VOXELS))])
    oblique = rng.random() < 0.25
    order = np.arange(3) if style == "axial" else rng.permutation(3)
    signs = np.array([-1, -1, rng.choice([1, -1])]) if style == "axial" else rng.choice([1, -1], 3)
    angles = rng.uniform(-1, 1, 3) * np.deg2rad(4.0 if style == "axial" else 10.0) * oblique
    matrix = _rotation(angles) @ np.diag(signs)[:, order] * spacing[order]
    shape = np.ceil((extent / spacing)[order]).astype(int) + 1
    middle = apply_affine(chest.affine_ras, start + extent / 2)
    room = np.stack([start, np.array(chest.image_hu.shape) - stop])  # mm on either side
    ahead = matrix[order, np.arange(3)] > 0
    grown = (np.where(ahead, room[:, order], room[::-1, order]) / spacing[order]).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = matrix
    affine[:3, 3] = middle - matrix @ ((shape - 1) / 2 + grown[0])
    return affine, tuple((shape + grown.sum(axis=0)).tolist()), grown.T.tolist()


def _rotation(angles: Array) -> Array:
    (ca, cb, cc), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    about_z = np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def _sampling(positions: Array, n: int, blur: float, sharpen: float) -> Field:
    """Return weights ``[positions, n]`` that sample an axis of ``n`` voxels with a Gaussian point spread function.

    Args:
        positions: where to sample, voxels.
        n: number of voxels on the axis.
        blur: standard deviation, voxels; up to 0.3, samples are interpolated linearly.
        sharpen: strength of edge enhancement; 0 for none.
    """
    distance = positions[:, None] - np.arange(-4, n + 4)[None]
    rows = np.maximum(1 - np.abs(distance), 0) if blur <= 0.3 else np.exp(-0.5 * (distance / blur) ** 2)
    rows = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-9)
    if sharpen > 0:
        wide = np.exp(-0.5 * (distance / (2.2 * max(blur, 0.5))) ** 2)
        rows = (1 + sharpen) * rows - sharpen * wide / np.maximum(wide.sum(axis=1, keepdims=True), 1e-9)
    rows[:, 4] += rows[:, :4].sum(axis=1)  # beyond the border, its voxels are repeated
    rows[:, -5] += rows[:, -4:].sum(axis=1)
    rows[np.abs(rows) < 1e-4] = 0
    return rows[:, 4:-4].astype(np.float32)


def _resample(
    chest: Chest, affine_ras: Array, shape: tuple[int, ...], blur_mm: Sequence[float], sharpen: float
) -> Field:
    """Resample the chest's image to another grid with the scanner's point spread (``blur_mm`` along RAS x, y, z)."""
    to_chest = np.linalg.inv(chest.affine_ras) @ affine_ras
    direction = np.abs(to_chest[:3, :3] / spacing_mm(affine_ras))
    positions = [np.arange(float(n)) for n in chest.image_hu.shape]
    order = direction.argmax(axis=0)  # chest axis that each scan axis runs along
    is_straight = np.allclose(direction.max(axis=0), 1, atol=1e-6)
    if is_straight:
        for axis, target in enumerate(order):
            positions[target] = to_chest[target, 3] + to_chest[target, axis] * np.arange(shape[axis])
    edges = (sharpen, sharpen, 0.0)
    rows = [_sampling(*axis) for axis in zip(positions, chest.image_hu.shape, blur_mm, edges, strict=True)]
    image = along_axes(rows, chest.image_hu)
    if is_straight:
        return np.ascontiguousarray(image.transpose(order))
    return np.asarray(
        ndimage.affine_transform(image, to_chest[:3, :3], to_chest[:3, 3], shape, order=1, mode="nearest")
    )


def _noise(rng: np.random.Generator, shape: tuple[int, ...], sharpness: float, across: int) -> Field:
    """Return CT noise of unit variance, slightly correlated between slices.

    The noise amplitude in the slice plane rises as the square root of the frequency and is rolled off by the kernel.

    Args:
        rng: source of the noise.
        shape: the scan's shape.
        sharpness: of the kernel, 0 (soft) … 1 (sharp).
        across: the axis across the slices.
    """
    plane = tuple(n for a, n in enumerate(shape) if a != across)
    fx, fy = np.fft.fftfreq(plane[0])[:, None], np.fft.rfftfreq(plane[1])[None]
    f = np.sqrt(fx**2 + fy**2)
    gain = (np.sqrt(f) * np.exp(-((f / (0.10 + 0.22 * sharpness)) ** 2)) + 0.02).astype(np.float32)
    full = np.sqrt(np.where(fy == 0, 1.0, 2.0))  # only half of the spectrum is stored
    gain /= np.sqrt(((gain * full) ** 2).sum() / (plane[0] * plane[1]))
    out = np.zeros((shape[across], *plane), dtype=np.float32)
    for index in range(len(out)):  # index - 1 of the first slice is the last one, which is still 0
        white = rng.standard_normal(plane, dtype=np.float32)
        filtered = fft.irfft2(fft.rfft2(white) * gain, s=plane)
        out[index] = 0.35 * out[index - 1] + np.sqrt(1 - 0.35**2) * filtered
    return np.moveaxis(out, 0, across)


def scan_chest(chest: Chest, seed: int, *, style: Style = "axial") -> Scan:
    """Scan a synthetic chest: draw grid, slice thickness, kernel and noise level, and render image and mask.

    Args:
        chest: the chest, see ``make_chest``.
        seed: seed of this scan.
        style: "axial" or "any", see ``draw_scan_affine``.
    """
    rng = np.random.default_rng([seed, 1])
    affine_ras, shape, grown = draw_scan_affine(rng, chest, style)
    sharpness = float(rng.uniform(0, 1))
    across = slice_axis(affine_ras)
    thickness = float(spacing_mm(affine_ras)[across] * rng.choice([1.0, 1.25]))
    blur_mm = [0.62 - 0.22 * sharpness, 0.62 - 0.22 * sharpness, max(thickness / 2.6, 0.3)]
    image = _resample(chest, affine_ras, shape, blur_mm, 0.35 * max(sharpness - 0.5, 0))
    strength = rng.uniform(8, 16) * (1 + 1.6 * sharpness) / np.sqrt(max(thickness, 0.8))
    trunk_shape = tuple(n - a - b for n, (a, b) in zip(shape, grown, strict=True))
    noise = np.pad(_noise(rng, trunk_shape, sharpness, across), grown, mode="wrap")  # periodic in the plane
    image += np.float32(strength) * np.clip(1 + image / 2500, 0.55, 1.2) * noise
    hu = np.clip(np.rint(image), -1024, 3071).astype(np.int16)
    kernel = f"B{20 + 10 * round(6 * sharpness)}"
    return Scan(hu, instance_mask(chest.nodules, affine_ras, shape), affine_ras, kernel, thickness)

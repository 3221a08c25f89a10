"""Nodule insertion: real nodules, cut out with their masks, are blended into the lungs of other scans.

A donor is a small CT patch with the mask of one nodule. It is rotated, flipped and scaled at random, resampled to the
crop's grid in one step, and blended in with a soft edge where the host is lung parenchyma. Where the host has a large
soft-tissue structure (chest wall, heart), the host is kept: the nodule then abuts it, as pleural nodules do.

A nodule either replaces the host except for its vessels, or a share of its density is added to the host's, as in
ground glass: a solid donor then becomes a faint nodule. An added nodule may be dense in its core (part-solid).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from monai.transforms import RandomizableTransform
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ..core.errors import DataError
from ..core.geometry import BoolArray, FloatArray, spacing_mm, sphere_diameter_mm
from ..core.labels import IGNORED, NODULE
from .crops import crop_by_affine, extent_mm

PARENCHYMA_HU = (-960.0, -650.0)  # range of the local mean in aerated lung: neither trachea nor tissue
AERATED_HU = -500.0  # below this a voxel is aerated; if the local mean is denser than parenchyma, it is beside tissue
SOLID_HU = -250.0  # local mean above which a host structure is too massive to be overwritten
LOCAL_SIGMA_VOXEL = 2.0  # of the Gaussian that computes these local means
# Of the blur of a scan, in edges of its voxels: a mean over one edge, then linear interpolation (variance 1/12 + 1/6).
SIGMA_OF_VOXEL = 0.5
EDGE_SIGMA_VOXEL = 0.7  # softness of the blended edge: about the resolution of a CT
GAP_VOXEL = 3.0  # kept free between nodules
SMALLEST_VOXELS = 8  # anything smaller, under 2.5 mm across, is no longer a nodule
ABOVE_DONOR_HU = 80.0  # limit above the donor's own density when densities are added: two tissues do not make bone
FAINTEST_HU = 100.0  # least mean density added to a nodule of 10 mm or more: ground glass that a reader would mark;
FAINTEST_HU_MM = 1000.0  # divided by the diameter for a smaller one, so the smaller the nodule, the more is added
VESSEL_HU = -500.0  # host voxels denser than this and than the nodule are kept, so that vessels continue
BASE_SHARE = 0.12  # at least this share of the shell around a donor that grew at a wall is tissue,
BASE_AGREEMENT = 0.5  # mostly on one side: the mean of the unit vectors to it is longer than this
WALL_VOXEL = 8  # how far from a site a wall is searched for
CORE_DEPTH = (0.3, 0.8)  # depth at which the core of a part-solid nodule begins, as a share of the greatest depth

HU = npt.NDArray[np.float32]


def size_weight(diameter_mm: float, power: float = 0.5) -> float:
    """Return the sampling weight of a nodule of this size.

    LWNet repeats larger nodules (1, +2, +4, +8 above 3, 10, 20, 30 mm). Deviation: by default the square root of that,
    because with donors zoomed by up to 2.2 large nodules are common enough, and most missed nodules are small.

    Args:
        diameter_mm: of the nodule.
        power: of the number of repeats; 1 is LWNet's, 0 draws all sizes alike.
    """
    repeats = 1.0 + sum(extra for above, extra in ((10.0, 2.0), (20.0, 4.0), (30.0, 8.0)) if diameter_mm > above)
    return float(repeats**power)


def _largest_piece(inside: BoolArray) -> BoolArray:
    """Return the largest connected component, as a wall may cut a nodule in two; an empty mask stays empty."""
    labels, count = ndimage.label(inside, structure=np.ones((3, 3, 3)))
    return inside if count < 2 else np.asarray(labels == 1 + np.bincount(labels.ravel())[1:].argmax())


def _base(hu: HU, inside: BoolArray) -> FloatArray | None:
    """Return the direction ``[3]`` from a nodule to the wall it grew at; ``None`` for a nodule surrounded by lung.

    Args:
        hu: ``[I, J, K]``, the nodule and its surroundings.
        inside: ``[I, J, K]``, its mask.
    """
    shell = ndimage.binary_dilation(inside, iterations=3) & ~ndimage.binary_dilation(inside)
    tissue = np.argwhere(shell & (hu > SOLID_HU)) - np.argwhere(inside).mean(0)
    if len(tissue) < BASE_SHARE * shell.sum():
        return None
    towards = (tissue / np.linalg.norm(tissue, axis=1, keepdims=True)).mean(0)
    length = float(np.linalg.norm(towards))
    return towards / length if length > BASE_AGREEMENT else None


def _is_free(site: FloatArray, occupied: FloatArray, radius: float) -> bool:
    """Whether a nodule of this radius at ``site`` keeps its distance from the others (``[N, 4]``)."""
    apart = np.linalg.norm(occupied[:, :3] - site, axis=1) - occupied[:, 3] / 2.0 - radius
    return bool(apart.min(initial=np.inf) > GAP_VOXEL)


def _to_wall(smooth_hu: HU, site: FloatArray) -> tuple[FloatArray, float] | None:
    """Return direction ``[3]`` and distance (voxels) to the nearest massive tissue; ``None`` if none is near."""
    low = np.maximum(site.astype(int) - WALL_VOXEL, 0)
    near = smooth_hu[tuple(slice(a, int(b) + WALL_VOXEL + 1) for a, b in zip(low, site, strict=True))]
    tissue = np.argwhere(near > SOLID_HU) + low - site
    if len(tissue) == 0:
        return None
    distances = np.linalg.norm(tissue, axis=1)
    towards = tissue[distances <= distances.min() + 1.5].mean(0)
    length = float(np.linalg.norm(towards))
    return (towards / length, float(distances.min())) if length > 0 else None


class InsertNodulesd(RandomizableTransform):
    """Insert up to ``most`` donors into a crop of 1 mm voxels.

    Reads and writes ``image`` ``[1, I, J, K]`` (HU, float32), ``mask`` ``[1, I, J, K]`` (created when absent),
    ``nodule`` ``[N, 4]`` (i, j, k, diameter mm) and ``label`` ``[N]``. Inserted nodules are appended as rows. A nodule
    that is cut by the crop's border keeps the centre and the diameter of the whole nodule, and is ignored if this
    centre lies outside the crop. Where ``lung`` ``[1, I, J, K]`` is present, only sites inside it are drawn. A crop
    without free parenchyma is returned unchanged. Where ``voxel_mm`` ``[3]`` is present (size of the host file's voxels
    along the axes of the crop), a donor of finer voxels is blurred as if it had been read and resampled from such ones.

    Args:
        donors: items ``{"image": path, "mask": path, "diameter_mm": float}``, NIfTI, any spacing; drawn by size
            (:func:`size_weight`) times ``weight`` (default 1).
        prob: share of crops that receive nodules.
        most: largest number of nodules per crop.
        scale: range of a donor's random zoom, drawn log-uniformly.
        size_power: how much more often large donors are drawn, see :func:`size_weight`.
        added: share of the nodules whose density is added to the host's; the others replace the host.
        opacity: range of the share of its density that an added nodule keeps, drawn uniformly.
        cored: share of the added nodules that keep their full density in the core and are faint around it.
        bordering: share of the nodules that are centred beside pleura, fissure or vessel instead of amid parenchyma.
            Donors that grew at a wall always are, and are moved from their site to a wall within ``WALL_VOXEL``.

    Raises:
        DataError: a donor lacks a key, or all weights are 0; or, on a call, the mask of a donor is empty.
    """

    def __init__(
        self,
        donors: Sequence[Mapping[str, Any]],
        *,
        prob: float,
        most: int,
        scale: tuple[float, float],
        size_power: float = 0.5,
        added: float = 0.0,
        opacity: tuple[float, float] = (1.0, 1.0),
        cored: float = 0.0,
        bordering: float = 0.0,
    ) -> None:
        super().__init__(prob=prob)
        self.donors = list(donors)
        for donor in self.donors:
            if missing := {"image", "mask", "diameter_mm"} - set(donor):
                raise DataError(
                    f"donor {donor.get('image', donor)}: expected image, mask and diameter_mm, found no "
                    f"{' and no '.join(sorted(missing))}; correct the datalist."
                )
        self.most, self.scale = most, scale
        self.added, self.opacity, self.cored, self.bordering = added, opacity, cored, bordering
        sizes = [size_weight(float(donor["diameter_mm"]), size_power) for donor in self.donors]
        weights = np.array([float(d.get("weight", 1.0)) for d in self.donors]) * sizes
        if len(weights) and not weights.sum() > 0:
            raise DataError(f"donors: expected a weight above 0, got 0 for all {len(weights)}; correct the datalist.")
        self._chances = weights / weights.sum() if len(weights) else weights
        self._patches: dict[int, tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], FloatArray]] = {}

    def _patch(self, number: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], FloatArray]:
        """Return a donor's HU, mask (both padded by one voxel, the mask with zeros) and spacing; cached."""
        if number not in self._patches:
            donor = self.donors[number]
            image, mask = (nibabel.Nifti1Image.from_filename(donor[key]) for key in ("image", "mask"))
            inside = np.asarray(mask.dataobj) > 0
            if not inside.any():
                raise DataError(f"{donor['mask']}: expected the mask of a nodule, got an empty one; remove this donor")
            hu = np.asarray(image.dataobj).astype(np.int16)
            self._patches[number] = (
                np.pad(hu, 1, mode="edge"),
                np.pad(inside.astype(np.uint8), 1),
                spacing_mm(image.affine),
            )
        return self._patches[number]

    def draw_donor(self) -> tuple[int, float, FloatArray]:
        """Draw a donor's number, its zoom, and a random rotation with flips."""
        number = int(self.R.choice(len(self.donors), p=self._chances))
        zoom = float(np.exp(self.R.uniform(*np.log(self.scale))))
        turn = Rotation.random(random_state=int(self.R.randint(2**31))).as_matrix()
        return number, zoom, turn * self.R.choice([-1.0, 1.0], 3)

    def turned(
        self, number: int, zoom: float, turn: FloatArray, shape: tuple[int, ...], voxel_mm: FloatArray
    ) -> tuple[HU, HU]:
        """Resample a donor to a centred 1 mm cube within ``shape``: HU and soft mask.

        Args:
            number, zoom: of the donor.
            turn: ``[3, 3]``, crop to donor.
            shape: of the crop.
            voxel_mm: ``[3]``, size of the host's voxels along the axes of the crop; the HU get its blur.
        """
        hu, inside, mm = self._patch(number)
        where = np.argwhere(inside)
        reach_mm = np.linalg.norm((where - where.mean(0)) * mm, axis=1).max() * zoom
        edge = int(min(2 * np.ceil(reach_mm + 3.0) + 1, *shape))
        to_source = np.eye(4)
        to_source[:3, :3] = (turn / zoom) / mm[:, None]
        to_source[:3, 3] = where.mean(0) - to_source[:3, :3] @ np.full(3, (edge - 1) / 2.0)
        size = (edge, edge, edge)
        soft = crop_by_affine(inside, to_source, size, order=1)
        turned_hu = crop_by_affine(hu, to_source, size, order=1)
        missing = np.square(voxel_mm) - np.square(extent_mm(mm * zoom, turn))
        sigma_voxel = SIGMA_OF_VOXEL * np.sqrt(np.maximum(missing, 0.0))
        return np.asarray(ndimage.gaussian_filter(turned_hu, sigma_voxel)), soft

    def _placed(
        self, smooth_hu: HU, amid: BoolArray, beside: BoolArray, occupied: FloatArray, voxel_mm: FloatArray
    ) -> tuple[HU, HU, FloatArray] | None:
        """Draw a donor (HU and soft mask) and the site of its centre; ``None`` if no site is free.

        A donor that grew at a wall gets a site beside tissue and is moved to the nearest wall, with its base towards
        it; it stays at the site if no wall is within :data:`WALL_VOXEL`.
        """
        number, zoom, turn = self.draw_donor()
        hu, soft = self.turned(number, zoom, turn, smooth_hu.shape, voxel_mm)
        inside = soft > 0.5
        base = _base(hu, inside)
        radius = sphere_diameter_mm(float(inside.sum())) / 2.0
        places = beside if base is not None or self.R.random() < self.bordering else amid
        site = self._site(places, occupied, radius)
        if site is None:
            return None
        if base is None:
            return hu, soft, site
        to_wall = _to_wall(smooth_hu, site)
        if to_wall is None:
            return hu, soft, site
        wall, distance = to_wall
        turn = turn @ Rotation.align_vectors(base[None], wall[None])[0].as_matrix()
        hu, soft = self.turned(number, zoom, turn, smooth_hu.shape, voxel_mm)
        depth = ((np.argwhere(soft > 0.5) - (len(soft) - 1) / 2.0) @ wall).max(initial=0.0)
        site = (site + wall * (distance - depth + 1.0)).round()  # the nodule overlaps the wall by one voxel
        site = np.clip(site, 0, np.array(smooth_hu.shape) - 1)
        return (hu, soft, site) if _is_free(site, occupied, radius) else None

    def _site(self, places: BoolArray, occupied: FloatArray, radius: float) -> FloatArray | None:
        """Draw a site from ``places`` that keeps its distance from the existing nodules; ``None`` if 50 draws fail."""
        free = np.flatnonzero(places)
        if not len(free):
            return None
        for _ in range(50):
            site = np.array(np.unravel_index(free[self.R.randint(len(free))], places.shape), dtype=np.float64)
            if _is_free(site, occupied, radius):
                return site
        return None

    def _insert(self, item: dict[Hashable, Any], smooth_hu: HU, amid: BoolArray, beside: BoolArray) -> None:
        """Insert one donor into the crop in ``item``, in place (its arrays are private to this call).

        Args:
            item: see the class.
            smooth_hu: local mean of the crop.
            amid, beside: aerated voxels amid parenchyma, and beside tissue.
        """
        image, mask = item["image"][0], item["mask"][0]
        voxel_mm = np.asarray(item.get("voxel_mm", np.zeros(3)))
        placed = self._placed(smooth_hu, amid, beside, item["nodule"], voxel_mm)
        if placed is None:
            return
        hu, soft, site = placed
        low = site.astype(int) - hu.shape[0] // 2
        here = tuple(slice(max(a, 0), min(a + n, m)) for a, n, m in zip(low, hu.shape, image.shape, strict=True))
        there = tuple(slice(s.start - a, s.stop - a) for s, a in zip(here, low, strict=True))
        kept = (smooth_hu[here] > SOLID_HU) | (mask[here] > 0)
        whole = soft > 0.5  # the whole nodule, including what lies beyond the crop
        whole[there] &= ~kept
        whole = _largest_piece(whole)
        inside = whole[there]
        if inside.sum() < SMALLEST_VOXELS:
            return
        edge_voxel = np.maximum(EDGE_SIGMA_VOXEL, SIGMA_OF_VOXEL * voxel_mm)
        alpha = ndimage.gaussian_filter(ndimage.binary_dilation(inside).astype(np.float32), edge_voxel)
        alpha[kept] = 0.0
        if self.R.random() < self.added:
            aerated_hu = image[here][image[here] < AERATED_HU]
            lung_hu = float(np.median(aerated_hu)) if len(aerated_hu) else AERATED_HU  # a moved one may lie in tissue
            image[here] = self._with_density_added(image[here], hu[there], alpha, inside, lung_hu)
        else:
            blended_hu = image[here] + alpha * (hu[there] - image[here])
            image[here] = np.maximum(blended_hu, np.where(image[here] > VESSEL_HU, image[here], -np.inf))
        number = len(item["label"]) + 1
        mask[here][inside] = number
        centre = np.argwhere(whole).mean(0) + low
        row = np.array([[*centre, sphere_diameter_mm(float(whole.sum()))]], dtype=np.float32)
        in_crop = (centre >= 0).all() and (centre <= np.array(image.shape) - 1).all()
        item["nodule"] = np.concatenate([item["nodule"], row])
        item["label"] = np.append(item["label"], NODULE if in_crop else IGNORED)

    def _with_density_added(
        self, host_hu: HU, nodule_hu: HU, alpha: HU, inside: BoolArray, lung_hu: float
    ) -> npt.NDArray[np.float32]:
        """Return the host plus a share of the nodule's density above that of lung; all arrays are ``[I, J, K]``."""
        density_hu = alpha * self._opacity(inside) * np.maximum(nodule_hu - lung_hu, 0.0)
        wanted_hu = max(FAINTEST_HU, FAINTEST_HU_MM / sphere_diameter_mm(float(inside.sum())))
        density_hu *= max(wanted_hu / max(float(density_hu[inside].mean()), 1.0), 1.0)
        most_hu = np.maximum(host_hu, nodule_hu + ABOVE_DONOR_HU)
        return np.asarray(np.minimum(host_hu + density_hu, most_hu), dtype=np.float32)

    def _opacity(self, inside: BoolArray) -> HU:
        """Return the share of its density that a nodule keeps, ``[I, J, K]``: constant, or rising to 1 in the core."""
        opacity = np.full(inside.shape, self.R.uniform(*self.opacity), dtype=np.float32)
        if self.R.random() < self.cored:
            depth = ndimage.distance_transform_edt(inside)
            core = (depth > self.R.uniform(*CORE_DEPTH) * depth.max()).astype(np.float32)
            opacity += ndimage.gaussian_filter(core, EDGE_SIGMA_VOXEL) * (1.0 - opacity)
        return opacity

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        item["image"] = np.array(item["image"], dtype=np.float32)
        item["mask"] = np.array(item.get("mask", np.zeros(item["image"].shape)), dtype=np.uint8)
        item["nodule"] = np.asarray(item["nodule"], dtype=np.float32).reshape(-1, 4)
        self.randomize(None)
        if self._do_transform and self.donors:
            smooth_hu = ndimage.gaussian_filter(item["image"][0], LOCAL_SIGMA_VOXEL)
            aerated = (item["image"][0] < AERATED_HU) & (smooth_hu > PARENCHYMA_HU[0]) & (smooth_hu < SOLID_HU)
            aerated &= np.asarray(item["lung"][0] > 0) if "lung" in item else True
            aerated &= np.pad(np.ones([n - 4 for n in aerated.shape], dtype=bool), 2)  # not at the crop's border
            amid = smooth_hu < PARENCHYMA_HU[1]
            for _ in range(int(self.R.randint(1, self.most + 1))):
                self._insert(item, smooth_hu, aerated & amid, aerated & ~amid)
        return item

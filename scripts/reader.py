"""Reading a scan: DICOM series, MetaImage, NRRD and NIfTI become int16 HU with a voxel-to-RAS affine.

:class:`ScanReader` plugs into MONAI: ``LoadImaged(keys="image", reader=ScanReader())`` on the items of
:func:`find_scans`; :class:`LabelReader` reads masks in the same way, without the checks for HU. Geometry always comes
from the file; what cannot be trusted is refused with a :class:`ScanError`.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from monai.data import ImageReader

from .dicom_series import looks_like_dicom, read_series, series_grid
from .discovery import IMAGE_SUFFIXES, find_scans, is_image_file
from .geometry import FloatArray, apply_affine, swap_lps_ras_affine
from .scan import Grid, ScanError, Volume, make_grid, make_volume, quiet_itk

__all__ = [
    "Grid",
    "LabelReader",
    "ScanError",
    "ScanReader",
    "Volume",
    "find_scans",
    "read_grid",
    "read_labels",
    "read_scan",
]

FORM_DISAGREEMENT_MM = 1.0  # between a NIfTI file's sform and qform before it is worth a note
GZIP_MARK = b"\x1f\x8b"  # a NIfTI file is unpacked where it begins so, whatever its name says
NIFTI_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
FILE_SEPARATOR = "\0"  # no path holds it; MONAI turns a list in an image's metadata into lists of other shapes
HEADER_BYTES = 65536  # of a MetaImage or NRRD file: their text headers are far shorter

_MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "meter": 1000.0, "um": 1e-3, "micron": 1e-3, "unknown": 1.0}


@dataclass(frozen=True)
class ScanFiles:
    """The paths of one scan, checked for nothing yet: what :meth:`ScanReader.read` passes to ``get_data``."""

    paths: tuple[str, ...]


class ScanReader(ImageReader):
    """MONAI image reader for one CT scan per call, whatever its format.

    MONAI's ``LoadImage`` answers an exception in ``read`` by trying its own readers, which would read a refused scan
    without a word. Hence ``read`` only keeps the paths, and everything that can fail happens in ``get_data``.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether these are paths this reader is for: image files, DICOM files, folders."""
        paths = [Path(path) for path in _as_paths(filename)]
        return all(is_image_file(path) or path.is_dir() or looks_like_dicom(path) for path in paths)

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> ScanFiles:
        """Keep the path or paths of one scan.

        Raises:
            TypeError: an option is given; there is none.
        """
        if kwargs:
            raise TypeError(f"ScanReader.read takes no options, got {', '.join(kwargs)}.")
        return ScanFiles(_as_paths(data))

    def get_data(self, img: ScanFiles) -> tuple[npt.NDArray[np.int16], dict[str, Any]]:
        """Read the scan.

        Returns:
            ``[I, J, K]`` int16 HU, and the metadata: ``affine`` and ``original_affine`` (``[4, 4]``, voxel to RAS mm),
            ``space``, ``spatial_shape``, ``original_channel_dim``, ``filename_or_obj``, ``facts`` (header facts free
            of identity, as strings; which ones depends on the file, so collate single scans, or drop them with
            ``prune_meta_pattern="facts"``), ``notes`` (one line per note, "" for none), ``source_files`` (the DICOM
            slices, one for each k, joined by :data:`FILE_SEPARATOR`; "" for other formats).

        Raises:
            ScanError: the scan must be refused.
        """
        volume = read_scan(img.paths)
        told = {
            "facts": dict(volume.facts),
            "notes": "\n".join(volume.notes),
            "source_files": FILE_SEPARATOR.join(volume.source_files),
        }
        return volume.image_hu, _meta(img, volume.image_hu.shape, volume.affine_ras) | told


class LabelReader(ScanReader):
    """MONAI image reader for one mask per call: whole numbers on a grid, in any image format (not DICOM)."""

    def get_data(self, img: ScanFiles) -> tuple[npt.NDArray[np.int16], dict[str, Any]]:
        """Read the mask.

        Returns:
            ``[I, J, K]`` int16 labels, and the metadata of :class:`ScanReader` but for ``facts``, ``notes`` and
            ``source_files``.

        Raises:
            ScanError: the mask must be refused.
        """
        labels, affine_ras = read_labels(img.paths)
        return labels, _meta(img, labels.shape, affine_ras)


def _meta(img: ScanFiles, shape: tuple[int, ...], affine_ras: FloatArray) -> dict[str, Any]:
    """What MONAI wants to know of an image."""
    return {
        "affine": affine_ras.copy(),
        "original_affine": affine_ras.copy(),
        "space": "RAS",
        "spatial_shape": np.array(shape),
        "original_channel_dim": "no_channel",
        "filename_or_obj": img.paths[0],
    }


def read_scan(image: Sequence[Any] | Any) -> Volume:
    """Read one scan from an image file, its DICOM slices (in any order), or a folder that holds nothing else.

    Raises:
        ScanError: the scan must be refused.
    """
    paths = _existing(image)
    first = Path(paths[0])
    if len(paths) == 1 and first.is_dir():
        return _read_folder(first)
    if len(paths) > 1 or not is_image_file(first):
        return read_series(paths)
    return _read_nifti(first) if _is_nifti(first) else _read_itk(first)


def read_labels(mask: Sequence[Any] | Any) -> tuple[npt.NDArray[np.int16], FloatArray]:
    """Read a mask from an image file.

    Returns:
        ``[I, J, K]`` whole numbers as they stand in the file, and the voxel-to-RAS affine, mm.

    Raises:
        ScanError: no image file, damaged, no usable grid, or values that are no whole numbers of 16 bits.
    """
    paths = _existing(mask)
    path = Path(paths[0])
    if len(paths) > 1 or not path.is_file() or not is_image_file(path):
        raise ScanError(f"{path}: expected a mask in one file ({', '.join(IMAGE_SUFFIXES)}); convert it.")
    if _is_nifti(path):
        image, values = _load_nifti(path)
        affine_ras = _nifti_affine(image)
    else:
        image = _load_itk(path)
        values = sitk.GetArrayFromImage(image).T
        affine_ras = swap_lps_ras_affine(_itk_affine_lps(image, _mm_per_unit(path, _header_text(path))))
    shape = make_grid(str(path), values.shape, affine_ras).shape
    return _whole_numbers(path, values.reshape(shape)), affine_ras


def _whole_numbers(path: Path, values: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    if values.dtype.kind in "biuf":
        with np.errstate(invalid="ignore"):  # of NaN and of what 16 bits cannot hold: noticed by the comparison
            labels = values.astype(np.int16)
        if np.array_equal(labels, values):
            return labels
    raise ScanError(
        f"{path}: expected a mask of whole numbers from -32768 to 32767, got other values ({values.dtype}); export the "
        "segmentation as labels, not as probabilities or colours."
    )


def read_grid(image: Sequence[Any] | Any) -> Grid:
    """Size and position of what :func:`read_scan` would read, from its headers alone.

    Raises:
        ScanError: no scan, or headers that cannot be read or give no usable grid; what the voxels hold, and whether
            they are all there, goes unnoticed here.
    """
    paths = _existing(image)
    first = Path(paths[0])
    if len(paths) == 1 and first.is_dir():
        return read_grid(_only_scan(first)["image"])
    if len(paths) > 1 or not is_image_file(first):
        return series_grid(paths)
    try:
        return _nifti_grid(first) if _is_nifti(first) else _itk_grid(first)
    except ScanError:
        raise
    except Exception as error:  # nibabel and ITK raise almost any type on damaged bytes
        raise ScanError(f"{first}: expected an image, got a header that cannot be read; copy it again.") from error


def _nifti_grid(path: Path) -> Grid:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MARK
    with gzip.open(path) if packed else path.open("rb") as file:
        data = file.read(NIFTI_HEADER_BYTES)
    header: Any = _nifti_class(data).header_class.from_fileobj(io.BytesIO(data))
    affine_ras = np.diag([_MM_PER_UNIT[header.get_xyzt_units()[0]]] * 3 + [1.0]) @ header.get_best_affine()
    return make_grid(str(path), header.get_data_shape(), affine_ras)


def _itk_grid(path: Path) -> Grid:
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    with quiet_itk():
        header.ReadImageInformation()
    affine_lps = _itk_affine_lps(header, _mm_per_unit(path, _header_text(path)))
    return make_grid(str(path), header.GetSize(), swap_lps_ras_affine(affine_lps))


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _existing(image: Sequence[Any] | Any) -> tuple[str, ...]:
    """The paths of one scan; refused when there is none."""
    paths = _as_paths(image)
    if not paths:
        raise ScanError("expected the path of a scan, got an empty list; check the datalist.")
    if len(paths) == 1 and not Path(paths[0]).exists():
        raise ScanError(f"{paths[0]}: expected a scan, found no such file or folder; check the path.")
    return paths


def _as_paths(data: Sequence[Any] | Any) -> tuple[str, ...]:
    return (str(data),) if isinstance(data, (str, Path)) else tuple(str(path) for path in data)


def _only_scan(folder: Path) -> dict[str, Any]:
    scans = find_scans(folder)
    if len(scans) > 1:
        names = ", ".join(scan["name"] for scan in scans)
        raise ScanError(f"{folder}: expected one scan, got {len(scans)} ({names}); name one of them.")
    return scans[0]


def _read_folder(folder: Path) -> Volume:
    scan = _only_scan(folder)
    volume = read_scan(scan["image"])
    notes = (*scan["notes"].splitlines(), *volume.notes)
    return replace(volume, notes=notes)


def _read_nifti(path: Path) -> Volume:
    image, values = _load_nifti(path)
    return make_volume(str(path), values, _nifti_affine(image), {"Format": "NIfTI"}, notes=_form_notes(image))


def _load_nifti(path: Path) -> tuple[Any, npt.NDArray[Any]]:
    """A NIfTI image and its values, by nibabel: ITK fills a truncated file with zeros, and refuses a sheared sform."""
    try:
        data = path.read_bytes()
        if data[:2] == GZIP_MARK:
            data = gzip.decompress(data)  # to the end, so that its checksum is verified
        image = _nifti_class(data).from_bytes(data)
        values = np.asanyarray(image.dataobj)
        _nifti_affine(image)
    except Exception as error:  # nibabel and gzip raise almost any type on damaged bytes
        raise ScanError(
            f"{path}: expected a NIfTI volume, got a truncated or damaged file ({error}); copy it again."
        ) from error
    return image, values


def _nifti_affine(image: Any) -> FloatArray:
    """Voxel to RAS mm of a NIfTI image, whatever its unit."""
    return np.asarray(np.diag([_MM_PER_UNIT[image.header.get_xyzt_units()[0]]] * 3 + [1.0]) @ image.affine)


def _nifti_class(data: bytes) -> type[Any]:
    size = {data[:4][::step] for step in (1, -1)}  # of the header, in either byte order
    return nib.Nifti2Image if (540).to_bytes(4, "little") in size else nib.Nifti1Image


def _form_notes(image: Any) -> tuple[str, ...]:
    """Say where a NIfTI file leaves its orientation open or contradicts itself; the sform counts first."""
    sform, qform = image.header.get_sform(coded=True), image.header.get_qform(coded=True)
    if sform[1] == 0 and qform[1] == 0:
        return ("the NIfTI header gives no orientation (sform and qform code 0): left and right are assumed",)
    if sform[1] > 0 and qform[1] > 0:
        last = np.array(image.shape[:3]) - 1
        corners = np.array([[i, j, k] for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[-1])])
        apart_mm = np.linalg.norm(apply_affine(sform[0], corners) - apply_affine(qform[0], corners), axis=1).max()
        if apart_mm > FORM_DISAGREEMENT_MM:
            return (f"sform and qform of the NIfTI header differ by up to {apart_mm:.0f} mm: the sform is used",)
    return ()


def _load_itk(path: Path) -> sitk.Image:
    """A MetaImage or NRRD image of one number per voxel."""
    try:
        with quiet_itk():
            image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:160]
        raise ScanError(
            f"{path}: expected an image with all its data, got a truncated or damaged file, or its data file is "
            f"missing ({reason}); copy it again."
        ) from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ScanError(
            f"{path}: expected one number per voxel, got {image.GetNumberOfComponentsPerPixel()} (colour or vectors); "
            "export the image as grey values: a CT in HU, a mask as labels."
        )
    return image


def _read_itk(path: Path) -> Volume:
    """Read MetaImage or NRRD with SimpleITK; the unit, which ITK ignores, from the header's text."""
    image = _load_itk(path)
    header = _header_text(path)
    modality = re.search(r"^Modality\s*=\s*MET_MOD_(\w+)", header, re.MULTILINE)
    if modality and modality[1] not in ("CT", "OTHER", "UNKNOWN"):
        raise ScanError(f"{path}: expected modality CT, got {modality[1]}; choose a CT scan.")
    is_nrrd = path.suffix.lower() == ".nrrd"
    affine_ras = swap_lps_ras_affine(_itk_affine_lps(image, _mm_per_unit(path, header)))
    notes: tuple[str, ...] = ()
    if is_nrrd and not re.search(r"^space: *(left-|right-|[lr][ap]s)", header, re.MULTILINE | re.IGNORECASE):
        notes = ("the NRRD header gives no patient frame: left-posterior-superior is assumed",)
    values = sitk.GetArrayFromImage(image).T
    return make_volume(str(path), values, affine_ras, {"Format": "NRRD" if is_nrrd else "MetaImage"}, notes=notes)


def _itk_affine_lps(image: sitk.Image | sitk.ImageFileReader, mm_per_unit: float) -> FloatArray:
    """Voxel to LPS mm of an ITK image; of a 4-D one, its first three axes."""
    n = image.GetDimension()
    count = min(n, 3)
    affine = np.eye(4)
    direction = np.reshape(image.GetDirection(), (n, n)) * np.array(image.GetSpacing())
    affine[:count, :count] = direction[:count, :count] * mm_per_unit
    affine[:count, 3] = np.array(image.GetOrigin())[:count] * mm_per_unit
    return affine


def _header_text(path: Path) -> str:
    """The text before the data of a MetaImage or NRRD file."""
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES).decode("latin-1").replace("\r\n", "\n")
    if path.suffix.lower() == ".nrrd":
        return text.split("\n\n", 1)[0]
    return text.split("ElementDataFile", 1)[0]


def _mm_per_unit(path: Path, header: str) -> float:
    """The file's unit of length; millimetres where it names none.

    Raises:
        ScanError: a unit that is no length known here, or several.
    """
    line = re.search(r"^(?:DistanceUnits *=|space units *:)(.*)$", header, re.MULTILINE)
    units = {unit.lower() for unit in re.findall(r"[^\s\"]+", line[1])} if line else {"mm"}
    factors = {_MM_PER_UNIT.get(unit, 1.0 if unit == "?" else 0.0) for unit in units}
    if len(factors) != 1 or 0.0 in factors:
        raise ScanError(
            f"{path}: expected lengths in mm, cm, m or um, got {', '.join(sorted(units))}; correct the header."
        )
    return factors.pop()

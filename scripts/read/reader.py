"""Reads scans: DICOM series, MetaImage, NRRD and NIfTI become int16 HU with a voxel-to-RAS affine.

:class:`ScanReader` plugs into MONAI: ``LoadImaged(keys="image", reader=ScanReader())`` on the items of
:func:`.discovery.find_scans`; :class:`LabelReader` reads masks in the same way, without the checks for HU. Geometry
always comes from the file; files that cannot be trusted are refused with a :class:`ScanError`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from monai.data import ImageReader

from ..core.geometry import FloatArray
from ..core.paths import kind_of
from .dicom_series import read_series, series_grid
from .discovery import IMAGE_SUFFIXES, is_image_file, looks_like_dicom, only_scan
from .nifti import read_nifti_header
from .scan import Grid, ScanError, Volume, make_volume
from .text_headers import ImageHeader, read_text_header

FILE_SEPARATOR = "\0"  # occurs in no path; used because MONAI restructures lists in an image's metadata
ScanFiles = tuple[str, ...]  # the unchecked paths of one scan, which ``read`` passes to ``get_data``


class ScanReader(ImageReader):
    """MONAI image reader for one CT scan per call, in any supported format.

    If ``read`` raises, MONAI's ``LoadImage`` tries its own readers, which would silently read a scan that was refused
    here. Therefore ``read`` only keeps the paths, and everything that can fail happens in ``get_data``.
    """

    def verify_suffix(self, filename: Sequence[Any] | Any) -> bool:
        """Whether this reader handles all of these paths: image files, DICOM files, folders."""
        paths = [Path(path) for path in _as_paths(filename)]
        return all(is_image_file(path) or path.is_dir() or looks_like_dicom(path) for path in paths)

    def read(self, data: Sequence[Any] | Any, **kwargs: Any) -> ScanFiles:
        """Keep the path or paths of one scan.

        Raises:
            TypeError: an option is given; there are none.
        """
        if kwargs:
            raise TypeError(f"ScanReader.read takes no options, got {', '.join(kwargs)}.")
        return _as_paths(data)

    def get_data(self, img: ScanFiles) -> tuple[npt.NDArray[np.int16], dict[str, Any]]:
        """Read the scan.

        Returns:
            ``[I, J, K]`` int16 HU, and the metadata: ``affine`` and ``original_affine`` (``[4, 4]``, voxel to RAS mm),
            ``space``, ``spatial_shape``, ``original_channel_dim``, ``filename_or_obj``, ``facts`` (header values that
            do not identify the patient, as strings; their keys depend on the file, so collate scans one at a time, or
            drop them with ``prune_meta_pattern="facts"``), ``notes`` (one line per note, "" for none),
            ``source_files`` (the DICOM slices, one for each k, joined by :data:`FILE_SEPARATOR`; "" for other
            formats).

        Raises:
            ScanError: the scan is refused.
        """
        volume = read_scan(img)
        reported = {
            "facts": dict(volume.facts),
            "notes": "\n".join(volume.notes),
            "source_files": FILE_SEPARATOR.join(volume.source_files),
        }
        return volume.image_hu, _meta(img, volume.image_hu.shape, volume.affine_ras) | reported


class LabelReader(ScanReader):
    """MONAI image reader for one mask per call: whole numbers on a grid, in any image format (not DICOM)."""

    def get_data(self, img: ScanFiles) -> tuple[npt.NDArray[np.int16], dict[str, Any]]:
        """Read the mask.

        Returns:
            ``[I, J, K]`` int16 labels, and the metadata of :class:`ScanReader` without ``facts``, ``notes`` and
            ``source_files``.

        Raises:
            ScanError: the mask is refused.
        """
        labels, affine_ras = read_labels(img)
        return labels, _meta(img, labels.shape, affine_ras)


def _meta(img: ScanFiles, shape: tuple[int, ...], affine_ras: FloatArray) -> dict[str, Any]:
    """Return the metadata that MONAI expects for an image."""
    return {
        "affine": affine_ras.copy(),
        "original_affine": affine_ras.copy(),
        "space": "RAS",
        "spatial_shape": np.array(shape),
        "original_channel_dim": "no_channel",
        "filename_or_obj": img[0],
    }


def read_scan(image: Sequence[Any] | Any) -> Volume:
    """Read one scan from an image file, its DICOM slices (in any order), or a folder that contains no other scan.

    Raises:
        ScanError: the scan is refused.
    """
    paths, notes = _files_of_scan(image)
    with _hiding(paths):
        volume = read_series(paths) if _is_series(paths) else _read_image(Path(paths[0]))
        return replace(volume, notes=(*notes, *volume.notes))


def read_grid(image: Sequence[Any] | Any) -> Grid:
    """Return the size and position of the scan that :func:`read_scan` would read, from its headers alone.

    The voxels' values are not checked.

    Raises:
        ScanError: there is no scan, or its headers cannot be read or give no usable grid.
    """
    paths, _ = _files_of_scan(image)
    return series_grid(paths) if _is_series(paths) else _header_of(Path(paths[0])).grid


def read_labels(mask: Sequence[Any] | Any) -> tuple[npt.NDArray[np.int16], FloatArray]:
    """Read a mask from an image file.

    Returns:
        ``[I, J, K]`` int16 values as stored in the file, and the voxel-to-RAS affine, mm.

    Raises:
        ScanError: this is not one image file, it is damaged, it has no usable grid, or its values are not whole numbers
            that fit 16 bits.
    """
    paths = _as_paths(mask)
    path = Path(_existing(paths))
    with _hiding(paths):
        if _is_series(paths) or kind_of(path) != "file":
            raise ScanError(f"{path}: expected a mask in one file ({', '.join(IMAGE_SUFFIXES)}); convert it.")
        header = _header_of(path)
        values = header.read_values()
        if values.dtype.kind in "biuf":
            with np.errstate(invalid="ignore"):  # NaN and values beyond 16 bits fail the comparison below
                labels = values.astype(np.int16)
            if np.array_equal(labels, values):
                return labels, header.grid.affine_ras
        raise ScanError(
            f"{path}: expected a mask of whole numbers from -32768 to 32767, got other values ({values.dtype}); export "
            "the segmentation as labels, not as probabilities or colours."
        )


@contextmanager
def _hiding(paths: Sequence[str]) -> Iterator[None]:
    """Hide the paths in any :class:`ScanError` from pages: folders and slices may be named after patients."""
    try:
        yield
    except ScanError as error:
        if not error.hidden:
            error.hide(paths)
        raise


def _files_of_scan(image: Sequence[Any] | Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the files of one scan, found by searching if it is a folder, and notes on their choice.

    Raises:
        ScanError: the scan does not exist, or the folder contains none or several.
    """
    paths = _as_paths(image)
    first = _existing(paths)
    if len(paths) > 1 or kind_of(first) != "folder":
        return paths, ()
    with _hiding(paths):
        scan = only_scan(first)
    files, notes = _files_of_scan(scan["image"])
    return files, (*scan["notes"].splitlines(), *notes)


def _existing(paths: Sequence[str]) -> str:
    """Return the first path of a scan or mask.

    Raises:
        ScanError: there is no path, or a single one that does not exist.
    """
    if not paths:
        raise ScanError("expected the path of a scan, got an empty list; check the datalist.")
    kind = kind_of(paths[0])
    if len(paths) == 1 and kind not in ("file", "folder"):
        raise ScanError(f"{paths[0]}: expected a scan, found {kind}; check the path.")
    return paths[0]


def _as_paths(data: Sequence[Any] | Any) -> tuple[str, ...]:
    return (str(data),) if isinstance(data, (str, Path)) else tuple(str(path) for path in data)


def _is_series(paths: Sequence[str]) -> bool:
    return len(paths) > 1 or not is_image_file(paths[0])


def _header_of(path: Path) -> ImageHeader:
    return read_nifti_header(path) if path.name.lower().endswith((".nii", ".nii.gz")) else read_text_header(path)


def _read_image(path: Path) -> Volume:
    """Read a scan in MetaImage, NRRD or NIfTI.

    Raises:
        ScanError: the scan is refused.
    """
    header = _header_of(path)
    if header.modality not in ("", "CT", "OTHER", "UNKNOWN"):
        raise ScanError(f"{path}: expected modality CT, got {header.modality}; choose a CT scan.")
    return make_volume(str(path), header.read_values(), header.grid, {"Format": header.form}, notes=header.notes)

"""Small DICOM series for the tests, written with pydicom from an array and an affine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from scripts.read.dicom_header import lenient

STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
SERIES_UID = "1.2.826.0.1.3680043.8.498.2"
RESCALE_INTERCEPT = -4096
FRAME_GROUPS: dict[str, tuple[str, ...]] = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
}

RAW: dict[str, dict[bytes, bytes]] = {}  # of each SOPInstanceUID: what stands in for values, and they themselves

Change = Callable[[Dataset, int], Any]


def make_dataset(pixels: npt.NDArray, position_mm: npt.ArrayLike, axes_mm: npt.NDArray) -> Dataset:
    """One CT slice.

    Args:
        pixels: ``[I, J]`` HU.
        position_mm: centre of the first pixel, LPS.
        axes_mm: ``[3, 2]``: step along i and along j, LPS.
    """
    spacing = np.linalg.norm(axes_mm, axis=0)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY_UID, SERIES_UID
    dataset.PatientName, dataset.PatientID = "Secret^Name", "SECRET-ID"
    dataset.Modality = "CT"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Manufacturer, dataset.KVP, dataset.ConvolutionKernel = "Maker", "120", "SOFT"
    dataset.ImagePositionPatient = [f"{x:.8g}" for x in np.asarray(position_mm)]
    dataset.ImageOrientationPatient = [f"{x:.8f}" for x in (axes_mm / spacing).T.ravel()]
    dataset.PixelSpacing = [f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"]
    dataset.Columns, dataset.Rows = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, RESCALE_INTERCEPT
    dataset.PixelData = (pixels.T.astype(np.int32) - RESCALE_INTERCEPT).astype("<u2").tobytes()
    return dataset


def set_raw(dataset: Dataset, keyword: str, value: str | bytes) -> None:
    """Set a value as it shall stand in the file, however wrong pydicom finds it: digits that :func:`save` replaces."""
    raw = value if isinstance(value, bytes) else value.encode("latin-1")
    raw += b" " * (len(raw) % 2)
    with lenient:
        setattr(dataset, keyword, "7" * len(raw))
    start = dictionary_VR(keyword).encode() + len(raw).to_bytes(2, "little")
    RAW.setdefault(str(dataset.SOPInstanceUID), {})[start + b"7" * len(raw)] = start + raw


def save(dataset: Dataset, path: Path) -> Path:
    """Write a dataset with the file meta information that fits it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    with lenient:
        dataset.save_as(path, enforce_file_format=True)
    for placeholder, raw in RAW.pop(str(dataset.SOPInstanceUID), {}).items():
        data = path.read_bytes()
        assert data.count(placeholder) == 1
        path.write_bytes(data.replace(placeholder, raw))
    return path


def write_series(
    folder: Path,
    image_hu: npt.NDArray,
    affine_lps: npt.NDArray,
    *,
    change: Change | None = None,
    series_uid: str = SERIES_UID,
    syntax: UID = ExplicitVRLittleEndian,
) -> list[Path]:
    """Write ``[I, J, K]`` HU as one file per slice, named in an order that is not that of the positions.

    Args:
        folder: where to.
        image_hu: the volume.
        affine_lps: ``[4, 4]`` voxel to LPS mm; its third column may be tilted.
        change: called with each dataset and its k before it is written; returning ``False`` leaves the slice out.
        series_uid: SeriesInstanceUID.
        syntax: transfer syntax; pydicom compresses.

    Returns:
        The files, by k.
    """
    paths = []
    for k in range(image_hu.shape[2]):
        dataset = make_dataset(image_hu[:, :, k], affine_lps[:3, 3] + k * affine_lps[:3, 2], affine_lps[:3, :2])
        dataset.SeriesInstanceUID = series_uid
        dataset.InstanceNumber = 7  # the same for all, so that nothing can lean on it
        if change is not None and change(dataset, k) is False:
            continue
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.file_meta.TransferSyntaxUID = syntax
        paths.append(save(dataset, folder / f"{(k * 37 + 11) % 101:03d}_{series_uid[-1]}.dcm"))
    return paths


def write_enhanced(
    path: Path,
    image_hu: npt.NDArray,
    affine_lps: npt.NDArray,
    *,
    change: Change | None = None,
    syntax: UID = ExplicitVRLittleEndian,
) -> Path:
    """Write ``[I, J, K]`` HU as one enhanced CT, its frames in an order that is not that of their positions.

    Args:
        path: the file.
        image_hu: the volume.
        affine_lps: as for :func:`write_series`.
        change: called with the functional groups of each frame and its k, and with the whole object and -1.
        syntax: transfer syntax; pydicom compresses.
    """
    order = [(k * 5 + 3) % image_hu.shape[2] for k in range(image_hu.shape[2])]
    if len(set(order)) < len(order):
        order = list(range(len(order)))[::-1]
    whole = make_dataset(image_hu[:, :, 0], affine_lps[:3, 3], affine_lps[:3, :2])
    pixels = [
        make_dataset(image_hu[:, :, k], affine_lps[:3, 3] + k * affine_lps[:3, 2], affine_lps[:3, :2]) for k in order
    ]
    whole.SOPClassUID, whole.NumberOfFrames = EnhancedCTImageStorage, len(order)
    whole.PixelData = b"".join(one.PixelData for one in pixels)
    groups = []
    for k, one in zip(order, pixels, strict=True):
        group = Dataset()
        for sequence, keywords in FRAME_GROUPS.items():
            item = Dataset()
            for keyword in keywords:
                item[keyword] = one[keyword]
            setattr(group, sequence, [item])
        frame_type, content = Dataset(), Dataset()
        frame_type.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
        content.StackID, content.InStackPositionNumber, content.TemporalPositionIndex = "1", k + 1, 1
        group.CTImageFrameTypeSequence, group.FrameContentSequence = [frame_type], [content]
        if change is not None:
            change(group, k)
        groups.append(group)
    shared, measures = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = whole.PixelSpacing, str(round(float(affine_lps[2, 2]), 3))
    shared.PixelMeasuresSequence = [measures]
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [shared], groups
    for keyword in (*sum(FRAME_GROUPS.values(), ()), "PixelSpacing"):
        del whole[keyword]
    if change is not None:
        change(whole, -1)
    if syntax.is_encapsulated:
        whole.compress(syntax, generate_instance_uid=False)
    whole.file_meta.TransferSyntaxUID = syntax
    return save(whole, path)

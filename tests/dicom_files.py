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
RAW: dict[str, dict[bytes, bytes]] = {}  # SOPInstanceUID → placeholder → raw value

Change = Callable[[Dataset, int], Any]


def make_dataset(image_hu: npt.NDArray, affine_lps: npt.NDArray, k: int) -> Dataset:
    """Return slice ``k`` of ``[I, J, K]`` HU as a CT slice; ``affine_lps`` as for :func:`write_series`."""
    spacing = np.linalg.norm(affine_lps[:3, :2], axis=0)
    values = {
        **{"SOPClassUID": CTImageStorage, "SOPInstanceUID": generate_uid()},
        **{"StudyInstanceUID": STUDY_UID, "SeriesInstanceUID": SERIES_UID},
        **{"PatientName": "Secret^Name", "PatientID": "SECRET-ID"},
        **{"Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]},
        **{"Manufacturer": "Maker", "KVP": "120", "ConvolutionKernel": "SOFT"},
        "ImagePositionPatient": [f"{x:.8g}" for x in affine_lps[:3, 3] + k * affine_lps[:3, 2]],
        "ImageOrientationPatient": [f"{x:.8f}" for x in (affine_lps[:3, :2] / spacing).T.ravel()],
        "PixelSpacing": [f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"],
        **{"Columns": image_hu.shape[0], "Rows": image_hu.shape[1]},
        **{"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2", "PixelRepresentation": 0},
        **{"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
        **{"RescaleSlope": 1, "RescaleIntercept": RESCALE_INTERCEPT},
        "PixelData": (image_hu[:, :, k].T.astype(np.int32) - RESCALE_INTERCEPT).astype("<u2").tobytes(),
    }
    dataset = with_values(Dataset(), **values)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset


def with_values(dataset: Dataset, **values: Any) -> Dataset:
    """Set values of the dataset by keyword, delete those that are ``None``, and return it."""
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
        if value is None:
            delattr(dataset, keyword)
    return dataset


def _sequence(**values: Any) -> list[Dataset]:
    """Return a sequence of one item."""
    return [with_values(Dataset(), **values)]


def set_raw(dataset: Dataset, keyword: str, value: str | bytes) -> None:
    """Set a value exactly as it is to appear in the file, even if pydicom rejects it.

    Placeholder digits are set, which :func:`save` replaces.
    """
    raw = value if isinstance(value, bytes) else value.encode("latin-1")
    raw += b" " * (len(raw) % 2)
    with lenient:
        setattr(dataset, keyword, "7" * len(raw))
    start = dictionary_VR(keyword).encode() + len(raw).to_bytes(2, "little")
    RAW.setdefault(str(dataset.SOPInstanceUID), {})[start + b"7" * len(raw)] = start + raw


def save(dataset: Dataset, path: Path, syntax: UID) -> Path:
    """Write a dataset, compressed if the transfer syntax is, with matching file meta information."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
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
    change: Change = lambda _, k: None,
    series_uid: str = SERIES_UID,
    syntax: UID = ExplicitVRLittleEndian,
) -> list[Path]:
    """Write ``[I, J, K]`` HU as one file per slice, with file names in an order other than that of the positions.

    Args:
        folder: receives the files.
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
        dataset = make_dataset(image_hu, affine_lps, k)
        dataset.SeriesInstanceUID = series_uid
        dataset.InstanceNumber = 7  # the same for all, so that nothing can rely on it
        if change(dataset, k) is not False:
            paths.append(save(dataset, folder / f"{(k * 37 + 11) % 101:03d}_{series_uid[-1]}.dcm", syntax))
    return paths


def write_enhanced(
    path: Path,
    image_hu: npt.NDArray,
    affine_lps: npt.NDArray,
    *,
    change: Change = lambda _, k: None,
    syntax: UID = ExplicitVRLittleEndian,
) -> Path:
    """Write ``[I, J, K]`` HU as one enhanced CT, with frames in an order other than that of their positions.

    Args:
        path: the file.
        image_hu: the volume.
        affine_lps: as for :func:`write_series`.
        change: called with the functional groups of each frame and its k, and with the whole object and -1.
        syntax: transfer syntax; pydicom compresses.

    Returns:
        The file.
    """
    order = sorted(range(image_hu.shape[2]), key=lambda k: ((k * 5 + 3) % 7, -k))
    slices = [make_dataset(image_hu, affine_lps, k) for k in order]
    groups = []
    for k, one in zip(order, slices, strict=True):
        group = with_values(
            Dataset(),
            PlanePositionSequence=_sequence(ImagePositionPatient=one.ImagePositionPatient),
            PlaneOrientationSequence=_sequence(ImageOrientationPatient=one.ImageOrientationPatient),
            PixelValueTransformationSequence=_sequence(
                RescaleSlope=one.RescaleSlope, RescaleIntercept=one.RescaleIntercept
            ),
            FrameContentSequence=_sequence(StackID="1", InStackPositionNumber=k + 1, TemporalPositionIndex=1),
            CTImageFrameTypeSequence=_sequence(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]),
        )
        change(group, k)
        groups.append(group)
    whole = make_dataset(image_hu, affine_lps, 0)
    thickness = str(round(float(affine_lps[2, 2]), 3))
    measures = _sequence(PixelSpacing=whole.PixelSpacing, SliceThickness=thickness)
    of_frames = ("ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope", "RescaleIntercept", "PixelSpacing")
    with_values(
        whole,
        **dict.fromkeys(of_frames),
        SOPClassUID=EnhancedCTImageStorage,
        NumberOfFrames=len(order),
        PixelData=b"".join(one.PixelData for one in slices),
        SharedFunctionalGroupsSequence=_sequence(PixelMeasuresSequence=measures),
        PerFrameFunctionalGroupsSequence=groups,
    )
    change(whole, -1)
    return save(whole, path, syntax)

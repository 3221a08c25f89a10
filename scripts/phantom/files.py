"""Writes images and masks as DICOM series, MetaImage, NRRD and NIfTI with the same world positions.

Every file appears under its final name only when it is complete. ``affine_ras`` is always voxel to RAS mm.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from ..core.files import beside, output_error, replacing
from ..core.geometry import FloatArray, apply_affine, spacing_mm, swap_lps_ras_affine
from ..core.nifti import write_nifti

RESCALE_INTERCEPT_HU = -1024  # HU of the stored value 0; HU - intercept fits unsigned 16 bit
# Attributes that are the same in all series; the date is fixed, so that the same seed gives the same files.
_CONSTANT: dict[str, Any] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "SOPClassUID": CTImageStorage,
    "Modality": "CT",
    "PatientName": "Phantom^Chest",
    "PatientID": "PHANTOM-0001",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "StudyDescription": "Synthetic chest CT",
    "ReferringPhysicianName": "",
    "StudyID": "1",
    "AccessionNumber": "",
    **dict.fromkeys(("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"), "20200101"),
    **dict.fromkeys(("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime"), "120000"),
    "SeriesNumber": 1,
    "AcquisitionNumber": 1,
    "PositionReferenceIndicator": "",
    "BodyPartExamined": "CHEST",
    "Manufacturer": "Synthetic",
    "ManufacturerModelName": "Phantom",
    "ImageType": ["DERIVED", "PRIMARY", "AXIAL"],
    "KVP": "120",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "PixelRepresentation": 0,
    "BitsAllocated": 16,
    "BitsStored": 16,
    "HighBit": 15,
    "RescaleIntercept": str(RESCALE_INTERCEPT_HU),
    "RescaleSlope": "1",
    "RescaleType": "HU",
    "WindowCenter": "-600",  # lung
    "WindowWidth": "1500",
}


def write_image(path: Path, array: npt.NDArray[np.generic], affine_ras: npt.ArrayLike) -> Path:
    """Write an image or mask in the format given by the suffix.

    Args:
        path: ends in .nii.gz, .nii, .mhd (with a .raw beside it), .mha or .nrrd; its folder is made if necessary.
        array: ``[I, J, K]`` values.
        affine_ras: ``[4, 4]``, with perpendicular axes.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith((".nii", ".nii.gz")):
        return write_nifti(path, array, affine_ras)
    affine_lps = swap_lps_ras_affine(affine_ras)
    steps_mm = spacing_mm(affine_lps)
    volume = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    volume.SetSpacing(steps_mm.tolist())
    volume.SetOrigin(affine_lps[:3, 3].tolist())
    volume.SetDirection((affine_lps[:3, :3] / steps_mm).ravel().tolist())
    try:
        with beside(path) as folder:
            folder.mkdir()
            sitk.WriteImage(volume, str(folder / path.name), useCompression=path.suffix == ".nrrd")
            if path.suffix == ".mhd":
                path.unlink(missing_ok=True)  # so that an old header never lies beside new data
                (folder / f"{path.stem}.raw").replace(path.with_suffix(".raw"))
            (folder / path.name).replace(path)
    except (OSError, RuntimeError) as error:  # the latter from ITK
        raise output_error(path, "room in a writable folder", error) from error
    return path


def seeded_uid(*parts: object) -> UID:
    """Return a DICOM UID under 2.25 (derived from a UUID); the same parts give the same UID."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}")


def _decimals(values: npt.ArrayLike) -> list[DSfloat]:
    return [DSfloat(value, auto_format=True) for value in np.ravel(values).tolist()]


def _series_attributes(uid_seed: object, shape: tuple[int, ...], affine_lps: FloatArray) -> dict[str, Any]:
    """Return the attributes that all slices of a series share."""
    steps_mm = spacing_mm(affine_lps)
    return (
        _CONSTANT
        | {
            "StudyInstanceUID": seeded_uid(uid_seed, "study"),
            "SeriesInstanceUID": seeded_uid(uid_seed, "series"),
            "FrameOfReferenceUID": seeded_uid(uid_seed, "frame"),
            "Columns": shape[0],
            "Rows": shape[1],
            "PixelSpacing": _decimals(steps_mm[[1, 0]]),  # of rows, of columns
            "ImageOrientationPatient": _decimals((affine_lps[:3, :2] / steps_mm[:2]).T),
            "SpacingBetweenSlices": _decimals(steps_mm[2])[0],
        }
    )


def write_dicom_series(
    folder: Path,
    image_hu: npt.NDArray[np.int16],
    affine_ras: npt.ArrayLike,
    *,
    uid_seed: object = 0,
    kernel: str = "B50",
    thickness_mm: float | None = None,
    feet_first: bool = False,
) -> Path:
    """Write a CT Image Storage series, one file per slice: i is the column, j the row, k the slice.

    Args:
        folder: the folder to write; replaced if it exists.
        image_hu: ``[I, J, K]``, at least -1024.
        affine_ras: ``[4, 4]``, with perpendicular axes of any direction.
        uid_seed: the same value gives the same UIDs.
        kernel: ConvolutionKernel.
        thickness_mm: SliceThickness; ``None`` for the distance between slices.
        feet_first: whether PatientPosition is FFS instead of HFS (positions do not change).

    Returns:
        The folder.

    Raises:
        ValueError: there are values below -1024.
        OutputError: the folder cannot be written.
    """
    if int(image_hu.min()) < RESCALE_INTERCEPT_HU:
        raise ValueError(f"{folder}: expected HU of at least {RESCALE_INTERCEPT_HU}, got {image_hu.min()}")
    affine_lps = swap_lps_ras_affine(affine_ras)
    attributes = _series_attributes(uid_seed, image_hu.shape, affine_lps) | {
        "ConvolutionKernel": kernel,
        "SeriesDescription": f"Synthetic chest {kernel}",
        "SliceThickness": _decimals(spacing_mm(affine_lps)[2] if thickness_mm is None else thickness_mm)[0],
        "PatientPosition": "FFS" if feet_first else "HFS",
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as new:
        new.mkdir()
        for k in range(image_hu.shape[2]):
            position = _decimals(apply_affine(affine_lps, (0, 0, k)))
            stored = (image_hu[:, :, k].T.astype(np.int32) - RESCALE_INTERCEPT_HU).astype("<u2")
            own = {
                "SOPInstanceUID": seeded_uid(uid_seed, "slice", k + 1),
                "InstanceNumber": k + 1,
                "ImagePositionPatient": position,
                "SliceLocation": position[2],
                "PixelData": stored.tobytes(),
            }
            dataset = Dataset()
            dataset.ensure_file_meta()
            dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            for keyword, value in {**attributes, **own}.items():
                setattr(dataset, keyword, value)
            dataset.save_as(new / f"{k + 1:04d}.dcm", enforce_file_format=True)
    return folder

"""Writes images and masks: DICOM series, MetaImage, NRRD and NIfTI, whose world positions agree.

Every file appears under its final name only when it is complete. ``affine_ras`` is always voxel to RAS mm.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, RLELossless
from pydicom.valuerep import DSfloat

from ..core.geometry import FloatArray, apply_affine, spacing_mm, swap_lps_ras_affine

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd")
RESCALE_INTERCEPT_HU = -1024  # stored value 0; HU - intercept fits unsigned 16 bit
LUNG_WINDOW_HU = (-600, 1500)  # centre, width
_STUDY_DATE = "20200101"  # fixed: the same seed gives the same files


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A hidden folder beside ``target`` to write in; what lies in it moves to the target's folder at the end.

    Raises:
        OSError: the target's folder cannot be made or written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        yield folder
        parts = sorted(folder.iterdir(), key=lambda p: p.name == target.name)  # the named file comes last
        former = folder / ".former"
        if target.exists() and (len(parts) > 1 or target.is_dir()):
            target.rename(former)  # never half a folder, nor a header beside other data
        try:
            for item in parts:
                item.replace(target.parent / item.name)
        except BaseException:
            if former.exists() and parts[0].exists():  # nothing of the new one is in place
                former.rename(target)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_orthogonal(affine_ras: npt.ArrayLike, what: str) -> FloatArray:
    """The affine, if its axes are perpendicular; formats that store direction and spacing can hold no other."""
    affine = np.asarray(affine_ras, dtype=np.float64)
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not (spacing_mm(affine) > 0).all():
        raise ValueError(f"{what}: expected a finite [4, 4] affine with non-zero axes, got {affine.tolist()}")
    direction = affine[:3, :3] / spacing_mm(affine)
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-4):
        raise ValueError(
            f"{what}: expected perpendicular axes, got direction {direction.tolist()}; resample the image first"
        )
    return affine


def write_image(path: str | Path, array: npt.NDArray[np.generic], affine_ras: npt.ArrayLike) -> Path:
    """Write an image or mask; the suffix chooses the format.

    Args:
        path: ends in one of ``IMAGE_SUFFIXES`` (.mhd writes a .raw beside it).
        array: ``[I, J, K]``.
        affine_ras: ``[4, 4]``.

    Returns:
        The path.

    Raises:
        ValueError: unknown suffix, not three axes, or sheared axes.
    """
    path = Path(path)
    if not path.name.endswith(IMAGE_SUFFIXES):
        raise ValueError(f"{path}: expected a name that ends in one of {', '.join(IMAGE_SUFFIXES)}")
    if array.ndim != 3:
        raise ValueError(f"{path}: expected an array of three axes, got shape {array.shape}")
    affine = _check_orthogonal(affine_ras, str(path))
    with _staged(path) as folder:
        if path.name.endswith((".nii", ".nii.gz")):
            image = nib.Nifti1Image(array, affine)
            image.set_sform(affine, code=1)
            image.set_qform(affine, code=1)
            image.header.set_xyzt_units("mm", "sec")
            nib.save(image, folder / path.name)
        else:
            lps = swap_lps_ras_affine(affine)
            volume = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
            volume.SetSpacing(spacing_mm(lps).tolist())
            volume.SetOrigin(lps[:3, 3].tolist())
            volume.SetDirection((lps[:3, :3] / spacing_mm(lps)).ravel().tolist())
            sitk.WriteImage(volume, str(folder / path.name), useCompression=path.suffix == ".nrrd")
    return path


def seeded_uid(*parts: object) -> UID:
    """A DICOM UID under 2.25 (made from a UUID), the same for the same parts."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}")


def _decimal(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)


def _add_patient_and_study(ds: FileDataset, uid_seed: object) -> None:
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Phantom^Chest", "PHANTOM-0001", "", "O"
    ds.StudyInstanceUID = seeded_uid(uid_seed, "study")
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = _STUDY_DATE
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.ReferringPhysicianName, ds.StudyID, ds.AccessionNumber = "", "1", ""
    ds.StudyDescription = "Synthetic chest CT"


def _add_series(ds: FileDataset, uid_seed: object, *, kernel: str, feet_first: bool) -> None:
    ds.Modality, ds.SeriesNumber, ds.AcquisitionNumber = "CT", 1, 1
    ds.SeriesInstanceUID = seeded_uid(uid_seed, "series")
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = seeded_uid(uid_seed, "frame"), ""
    ds.SeriesDescription = f"Synthetic chest {kernel}"
    ds.BodyPartExamined, ds.PatientPosition = "CHEST", "FFS" if feet_first else "HFS"
    ds.Manufacturer, ds.ManufacturerModelName = "Synthetic", "Phantom"
    ds.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    ds.KVP, ds.ConvolutionKernel = "120", kernel


def _add_pixel_description(ds: FileDataset, shape: tuple[int, ...], lps: FloatArray, thickness_mm: float) -> None:
    spacing = spacing_mm(lps)
    ds.Columns, ds.Rows = shape[0], shape[1]
    ds.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]  # between rows, then between columns
    ds.ImageOrientationPatient = [_decimal(v) for v in (lps[:3, :2] / spacing[:2]).T.ravel()]
    ds.SliceThickness, ds.SpacingBetweenSlices = _decimal(thickness_mm), _decimal(spacing[2])
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(RESCALE_INTERCEPT_HU), "1", "HU"
    ds.WindowCenter, ds.WindowWidth = (str(v) for v in LUNG_WINDOW_HU)


def write_dicom_series(
    folder: str | Path,
    image_hu: npt.NDArray[np.int16],
    affine_ras: npt.ArrayLike,
    *,
    uid_seed: object = 0,
    kernel: str = "B50",
    thickness_mm: float | None = None,
    feet_first: bool = False,
    compress: bool = False,
) -> Path:
    """Write a CT Image Storage series: columns run along i, rows along j, slices along k, one file a slice.

    Args:
        folder: made, or replaced when it exists.
        image_hu: ``[I, J, K]``, at least -1024.
        affine_ras: ``[4, 4]``, perpendicular axes of any direction.
        uid_seed: the same value gives the same UIDs.
        kernel: Convolution Kernel.
        thickness_mm: Slice Thickness; ``None``: the distance of the slices.
        feet_first: Patient Position FFS instead of HFS (positions do not change).
        compress: RLE Lossless instead of Explicit VR Little Endian.

    Returns:
        The folder.

    Raises:
        ValueError: not three axes, values below -1024, or sheared axes.
    """
    folder = Path(folder)
    if image_hu.ndim != 3 or image_hu.size == 0 or int(image_hu.min()) < RESCALE_INTERCEPT_HU:
        raise ValueError(f"{folder}: expected [I, J, K] HU of at least {RESCALE_INTERCEPT_HU}, got {image_hu.shape}")
    lps = swap_lps_ras_affine(_check_orthogonal(affine_ras, str(folder)))
    thickness = float(spacing_mm(lps)[2]) if thickness_mm is None else thickness_mm
    stored = (image_hu.astype(np.int32) - RESCALE_INTERCEPT_HU).astype("<u2")
    with _staged(folder) as staging:
        (staging / folder.name).mkdir()
        for k in range(stored.shape[2]):
            file = staging / folder.name / f"{k + 1:04d}.dcm"
            ds = _empty_slice(file, uid_seed, k + 1)
            _add_patient_and_study(ds, uid_seed)
            _add_series(ds, uid_seed, kernel=kernel, feet_first=feet_first)
            _add_pixel_description(ds, stored.shape, lps, thickness)
            position = apply_affine(lps, (0, 0, k))
            ds.ImagePositionPatient, ds.SliceLocation = [_decimal(v) for v in position], _decimal(position[2])
            ds.PixelData = np.ascontiguousarray(stored[:, :, k].T).tobytes()
            if compress:
                ds.compress(RLELossless, generate_instance_uid=False)
            ds.save_as(file, enforce_file_format=True)
    return folder


def _empty_slice(file: Path, uid_seed: object, number: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = seeded_uid(uid_seed, "slice", number)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    ds.InstanceNumber = number
    return ds

"""DICOM: the pixels of slices in HU.

What is stored plainly is read and unpacked here (PS3.5, 8.1.1: the high bit may be any); what is compressed is handed
to GDCM in a file of its own that holds no more than what a decoder needs. Rescaling is done here for both: ITK's
series reader takes the pixel type of the first slice and cuts off the fraction where a later slope is fractional.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import UID, CTImageStorage, RLELossless

from .dicom_header import SliceHeader, lenient, read_dataset
from .gdcm import Decoders
from .scan import DENSE_HU, ScanError, to_hu

SLICES_TURNED = 16  # that go into [I, J, K] together: several times as fast as one, and as all
DECODING_THREADS = 4  # reading and decoding release the interpreter lock; more do not help, the disk is the limit
OUTSIDE_HU = -1024  # for padding that would otherwise lie above bone
BLANK_SHARE = 0.25  # of a slice's rows: so many zeros more than its neighbour's are no picture of the body


def decode(source: str, ordered: Sequence[SliceHeader]) -> tuple[npt.NDArray[np.int16], tuple[str, ...]]:
    """Pixels of all slices in HU, ``[I, J, K]`` int16, contiguous; notes.

    Args:
        source: of the slices, for messages.
        ordered: alike in size, along k.

    Raises:
        ScanError: pixels are missing, damaged or blank, or their values uncertain.
    """
    columns, rows = ordered[0].size
    image_hu = np.empty((columns, rows, len(ordered)), dtype=np.int16)
    tails: list[int] = []
    threads = min(DECODING_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool, closing(Decoders(threads)) as gdcm:
        decode_slice = partial(_decode_slice, gdcm=gdcm)
        for first in range(0, len(ordered), SLICES_TURNED):
            some = list(pool.map(decode_slice, ordered[first : first + SLICES_TURNED]))
            image_hu[:, :, first : first + len(some)] = np.stack([hu for hu, _ in some]).transpose(2, 1, 0)
            tails += [tail for _, tail in some]
    return image_hu, _check_tails(source, ordered, tails)


def _decode_slice(header: SliceHeader, gdcm: Decoders) -> tuple[npt.NDArray[np.int16], int]:
    """One slice in HU, ``[J, I]``, and how many of its last rows are zeros as stored."""
    columns, rows = header.size
    try:
        stored = _plain(header) if header.stored.offset is not None else _unpacked(header, gdcm)
    except ScanError:
        raise
    except Exception as error:  # decoders raise almost any type on damaged bytes
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1][:160]
        raise ScanError(
            f"{header.path}: expected readable pixels, got a truncated or damaged file ({reason}); copy the series "
            "again."
        ) from error
    if stored.shape != (rows, columns):
        raise ScanError(
            f"{header.path}: expected one slice of {columns} × {rows} grey pixels, got an array of {stored.shape}; "
            "export the series again."
        )
    filled = np.flatnonzero(stored.any(axis=1))
    return _rescaled(header, stored), rows - (int(filled[-1]) + 1 if len(filled) else 0)


def _plain(header: SliceHeader) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Pixels that stand in the file as they are, one word each."""
    columns, rows = header.size
    dtype = _word(header)
    offset = (header.stored.offset or 0) + header.frame * rows * columns * dtype.itemsize
    with open(header.path, "rb") as file:
        pixels = np.fromfile(file, dtype, rows * columns, offset=offset)
    return pixels.reshape(rows, columns)


def _word(header: SliceHeader) -> np.dtype[Any]:
    allocated = (header.stored.bits or (16,))[0]
    return np.dtype(f"u{allocated // 8}").newbyteorder("<" if header.stored.syntax.is_little_endian else ">")


def _unpacked(header: SliceHeader, gdcm: Decoders) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Pixels of a compressed or deflated file, one word each."""
    columns, rows = header.size
    if header.stored.syntax.is_deflated:
        data, dtype = _pixel_data(header.path), _word(header)
        start = header.frame * rows * columns
        return np.frombuffer(data, dtype)[start : start + rows * columns].reshape(rows, columns)
    if header.frames == 1:
        return _by_gdcm(header, next(generate_frames(_pixel_data(header.path), number_of_frames=1)), gdcm)
    return _by_gdcm(header, _frames(header.path, header.frames)[header.frame], gdcm)


def _pixel_data(path: str) -> bytes:
    with lenient, open(path, "rb") as file:
        return bytes(read_dataset(file, specific_tags=["PixelData"]).PixelData)


@lru_cache(maxsize=1)
def _frames(path: str, frames: int) -> list[bytes]:
    """The compressed frames of one file, read once for all of them."""
    return list(generate_frames(_pixel_data(path), number_of_frames=frames))


def _by_gdcm(header: SliceHeader, frame: bytes, gdcm: Decoders) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Decode one frame: only what says how it is coded goes into the file that GDCM gets."""
    allocated, stored, high = header.stored.bits or (16, 16, 15)
    syntax = header.stored.syntax
    if high != stored - 1 and syntax != RLELossless:
        raise ScanError(
            f"{header.path}: expected compressed pixels whose HighBit is BitsStored - 1, got {high} and {stored}; "
            "decompress the series first."
        )
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Columns, dataset.Rows = header.size
    stored = allocated if syntax == RLELossless else stored  # RLE keeps whole words
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
    dataset.PixelRepresentation = int(header.stored.signed and syntax != RLELossless)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    with tempfile.TemporaryDirectory(prefix="slice-") as folder:
        path = Path(folder) / "slice.dcm"
        dataset.save_as(path, enforce_file_format=True)
        try:
            pixels = gdcm(str(path))
        except ValueError:
            if syntax != RLELossless:
                raise
            pixels = pixel_array(dataset, raw=True)[None]  # slow, but takes what GDCM stumbles over
    if pixels.ndim == 3 and len(pixels) == 1 and pixels.dtype.kind in "iu":
        return pixels[0].view(f"u{pixels.dtype.itemsize}")
    return np.asarray(pixels)


def _rescaled(header: SliceHeader, words: npt.NDArray[np.unsignedinteger[Any]]) -> npt.NDArray[np.int16]:
    """HU of stored words: unused bits taken away, sign, padding, slope and intercept."""
    _, stored, high = header.stored.bits or (16, 16, 15)
    values: npt.NDArray[np.signedinteger[Any]] = words.astype(np.int64 if words.dtype.itemsize > 2 else np.int32)
    values = (values >> (high + 1 - stored)) & ((1 << stored) - 1)
    if header.stored.signed:
        values -= (values >> (stored - 1)) << stored
    slope, intercept = header.stored.rescale or (1.0, 0.0)
    whole = (
        float(slope).is_integer() and float(intercept).is_integer() and abs(slope) < 2**12 and abs(intercept) < 2**20
    )
    image = values * int(slope) + int(intercept) if whole else values * slope + intercept
    if header.stored.padding is not None:
        low, high_value = header.stored.padding
        # Where padding looks like the body, it cannot be told from it, and it is left as it is.
        if min(low * slope, high_value * slope) + intercept > DENSE_HU:
            image[(values >= low) & (values <= high_value)] = OUTSIDE_HU
    return to_hu(header.path, image)


def _check_tails(source: str, ordered: Sequence[SliceHeader], tails: Sequence[int]) -> tuple[str, ...]:
    """Refuse slices that break off into zeros, as files do that were copied in part; a note for blank ones at an end.

    Args:
        tails: rows of zeros at the end of each slice.
    """
    rows = ordered[0].size[1]
    full = [k for k, tail in enumerate(tails) if tail < rows]
    if not full:
        return ()  # the same value everywhere: refused for that
    for k in range(full[0], full[-1] + 1):
        others = [tails[n] for n in (k - 1, k + 1) if full[0] <= n <= full[-1] and tails[n] < rows]
        if tails[k] == rows or (others and tails[k] > max(others) + BLANK_SHARE * rows):
            raise ScanError(
                f"{source}, file {ordered[k].name}: expected a picture up to its last row, got zeros in the last "
                f"{tails[k]} of {rows} rows: copied in part? Copy the series again."
            )
    blank = len(ordered) - (full[-1] + 1 - full[0])
    return (f"{blank} slice(s) at the ends of the series are blank: they hold zeros alone",) if blank else ()

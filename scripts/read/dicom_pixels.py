"""DICOM: decodes the pixels of slices to HU.

GDCM decodes JPEG, given each slice as an object of its own with only the attributes that a decoder needs; pydicom
decodes everything else. The bits of each value are extracted from its word here (PS3.5, 8.1.1: the high bit may be
anywhere), and all values are rescaled here: ITK's series reader uses the pixel type of the first slice and truncates
the values of later slices with a fractional slope.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import UID, CTImageStorage, RLELossless

from ..core.errors import line_of
from .dicom_header import PIXEL_FORMAT, SliceHeader, lenient, read_dicom
from .gdcm import decode_apart
from .scan import DENSE_HU, ScanError, to_hu

SLICES_TURNED = 16  # slices written into [I, J, K] at once: several times as fast as one at a time, or all together
SLICES_DECODED = 128  # slices passed to GDCM at once, as temporary files
OUTSIDE_HU = -1024  # replaces padding whose value would otherwise lie above bone
PIXEL_TAGS = ("PixelData", "Rows", "Columns", "NumberOfFrames", *PIXEL_FORMAT)  # what pydicom needs to decode pixels
UNTOUCHED: dict[str, Any] = {"raw": True, "correct_unused_bits": False}  # pixel words as stored
BLANK_SHARE = 0.25  # of a slice's rows: a slice with that many more zero rows at its end than its neighbours is cut

Words = npt.NDArray[np.unsignedinteger[Any]]


def decode(source: str, ordered: Sequence[SliceHeader]) -> tuple[npt.NDArray[np.int16], tuple[str, ...]]:
    """Return the pixels of all slices in HU, ``[I, J, K]`` int16, C-contiguous, and notes.

    Args:
        source: name of the series in messages.
        ordered: slices of the same size, in the order of k.

    Raises:
        ScanError: pixels are missing, damaged or blank, or their bits cannot be decoded with certainty.
    """
    columns, rows = ordered[0].size
    image_hu = np.empty((columns, rows, len(ordered)), dtype=np.int16)
    tails: list[int] = []
    pixels = _stored(ordered)
    for first in range(0, len(ordered), SLICES_TURNED):
        some = list(islice(pixels, SLICES_TURNED))
        turned = [_rescaled(header, words) for header, words in zip(ordered[first:], some, strict=False)]
        image_hu[:, :, first : first + len(some)] = np.stack(turned).transpose(2, 1, 0)
        tails += [_zero_rows(words) for words in some]
    return image_hu, _check_tails(source, ordered, tails)


def _stored(ordered: Sequence[SliceHeader]) -> Iterator[Words]:
    """Yield the pixels of each slice as stored, ``[J, I]``, one unsigned word per pixel.

    Raises:
        ScanError: pixels cannot be decoded, or are not those of one grey slice of the size in the header.
    """
    # Each frame of a file asks for the file's data set.
    dataset_of = lru_cache(maxsize=1)(partial(read_dicom, tags=PIXEL_TAGS, pixels=True))
    for first in range(0, len(ordered), SLICES_DECODED):
        some = ordered[first : first + SLICES_DECODED]
        coded = []
        for header in filter(_is_jpeg, some):
            with _naming(header):
                coded.append(_lone_slice(header, dataset_of(header.path)))
        decoded = iter(decode_apart(coded))
        for header in some:
            with _naming(header):
                if _is_jpeg(header):
                    words = _words_of(next(decoded))
                else:
                    words = _words_of(pixel_array(dataset_of(header.path), index=header.frame, **UNTOUCHED))
            if words.shape != header.size[::-1] or 8 * words.dtype.itemsize <= (header.bits or (16, 16, 15))[2]:
                raise ScanError(
                    f"{header.path}: expected one slice of {header.size[0]} × {header.size[1]} grey pixels, got an "
                    f"array of {words.shape}, {words.dtype}; export the series again."
                )
            yield words


def _is_jpeg(header: SliceHeader) -> bool:
    syntax = header.syntax
    return syntax.is_compressed and not syntax.is_deflated and syntax != RLELossless


@contextmanager
def _naming(header: SliceHeader) -> Iterator[None]:
    """Turn any decoding error into a :class:`ScanError` that names the file; ScanErrors pass unchanged."""
    try:
        with lenient:
            yield
    except ScanError:
        raise
    except Exception as error:  # decoders raise almost any type on damaged bytes
        raise ScanError(
            f"{header.path}: expected readable pixels, got a truncated or damaged file ({line_of(error)}); copy the "
            "series again."
        ) from error


def _zero_rows(words: Words) -> int:
    """Return how many rows at the end of a slice contain only zeros as stored."""
    filled = np.flatnonzero(words.any(axis=1))
    return len(words) - (int(filled[-1]) + 1 if len(filled) else 0)


def _lone_slice(header: SliceHeader, whole: FileDataset) -> Dataset:
    """Return a JPEG slice or frame as a DICOM object with only the attributes that describe its coding.

    Raises:
        ScanError: its bits are arranged in a way that decoders do not support.
    """
    allocated, stored, high = header.bits or (16, 16, 15)
    if high != stored - 1:
        raise ScanError(
            f"{header.path}: expected compressed pixels whose HighBit is BitsStored - 1, got {high} and {stored}; "
            "decompress the series first."
        )
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = header.syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Columns, dataset.Rows = header.size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, high
    dataset.PixelRepresentation = int(header.signed)
    dataset.PixelData = encapsulate([get_frame(whole.PixelData, header.frame, number_of_frames=header.frames)])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def _words_of(pixels: npt.NDArray[Any] | None) -> Words:
    """Return a decoder's output, ``[J, I]`` or ``[1, J, I]``, as unsigned ``[J, I]`` in this machine's byte order.

    Raises:
        ValueError: the decoder returned nothing.
    """
    if pixels is None:
        raise ValueError("the decoder returned no pixels")
    pixels = pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False).view(f"u{pixels.dtype.itemsize}")


def _rescaled(header: SliceHeader, words: Words) -> npt.NDArray[np.int16]:
    """Return the HU of stored words: remove unused bits, apply sign, slope and intercept, replace padding."""
    _, stored, high = header.bits or (16, 16, 15)
    size, kind = words.dtype.itemsize, "i" if header.signed else "u"
    values = (words << (8 * size - 1 - high)).view(f"{kind}{size}") >> (8 * size - stored)
    values = values.astype(np.int64 if size > 2 else np.int32)
    slope, intercept = header.rescale or (1.0, 0.0)
    whole = (
        float(slope).is_integer() and float(intercept).is_integer() and abs(slope) < 2**12 and abs(intercept) < 2**20
    )
    image = values * int(slope) + int(intercept) if whole else values * slope + intercept
    if header.padding is not None:
        low, high_value = header.padding
        # Padding up to this value cannot be told from the body, and is left unchanged.
        if min(low * slope, high_value * slope) + intercept > DENSE_HU:
            image[(values >= low) & (values <= high_value)] = OUTSIDE_HU
    return to_hu(header.path, image)


def _check_tails(source: str, ordered: Sequence[SliceHeader], tails: Sequence[int]) -> tuple[str, ...]:
    """Refuse slices that end in zeros, as partly copied files do; return a note if slices at an end are blank.

    Args:
        source: name of the series in messages.
        ordered: the slices, in the order of k.
        tails: number of zero rows at the end of each slice.

    Raises:
        ScanError: a slice between others ends in zeros.
    """
    rows = ordered[0].size[1]
    full = [k for k, tail in enumerate(tails) if tail < rows]
    if not full:
        return ()  # every voxel has the same value, and the scan is refused for that later
    for k in range(full[0], full[-1] + 1):
        others = [tails[n] for n in (k - 1, k + 1) if full[0] <= n <= full[-1] and tails[n] < rows]
        if tails[k] == rows or (others and tails[k] > max(others) + BLANK_SHARE * rows):
            raise ScanError(
                f"{source}, file {ordered[k].name}: expected an image down to its last row, got zeros in the last "
                f"{tails[k]} of {rows} rows: partly copied? Copy the series again."
            )
    blank = len(ordered) - (full[-1] + 1 - full[0])
    return (f"{blank} slice(s) at the ends of the series are blank: they hold only zeros",) if blank else ()

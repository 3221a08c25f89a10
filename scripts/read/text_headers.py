"""Reads MetaImage and NRRD, a text header followed by plain numbers, without ITK.

ITK assumes 1 mm if a header gives no voxel size, reads ``1,4`` as 1, recognises only lower-case extensions, ends the
process on a file name that is not UTF-8, writes its error messages to the terminal, and waits forever on a pipe. Here,
a header that does not describe its data exactly is refused. Sources: MetaIO's documentation, and the definition of NRRD
(teem.sourceforge.net/nrrd/format.html). Not supported: several data files, numbers as text, bzip2.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from nibabel.volumeutils import apply_read_scaling

from ..core.geometry import FloatArray, swap_lps_ras_affine
from ..core.paths import kind_of, unreadable
from .scan import Grid, ScanError, make_grid

HEADER_BYTES = 1 << 20  # far more than the text of any header, including lists of data files
MAX_RATIO = 1100  # one byte of zlib data can unpack to at most 1032
GZIP_MARK = b"\x1f\x8b"
PADDING_BYTES = 4096  # this many zeros may follow the voxels: a block of a disk or tape
MM_PER_UNIT = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 10.0),
    **dict.fromkeys(("m", "meter", "metre"), 1000.0),
    **dict.fromkeys(("um", "µm", "micron", "microns", "micrometer", "micrometre"), 1e-3),
}
NRRD_SUFFIXES = (".nrrd", ".nhdr")

_META_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_SPACES = {  # NRRD's spaces, with the signs that convert x and y to LPS; the third axis points to the head in all
    **dict.fromkeys(("left-posterior-superior", "lps"), (1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1, -1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1, -1)),
}


@dataclass(frozen=True)
class ImageHeader:
    """The header of a file in one of the image formats.

    Attributes:
        path: the header's file.
        form: "MetaImage", "NRRD" or "NIfTI".
        grid: the voxel grid.
        components: numbers per voxel.
        dtype: type of one number, with its byte order.
        file: the file that contains the voxels; the same as ``path`` if they follow the header.
        skip: bytes before the data in that file; -1 if the data are at its end.
        packed: whether the data are compressed, by zlib or gzip.
        modality: upper case; "" if the header does not give it.
        notes: remarks for the reader of a report.
        lead: bytes before the first voxel in the (unpacked) data.
        scaling: slope and intercept that convert stored numbers to the voxels' values.
    """

    path: Path
    form: str
    grid: Grid
    components: int
    dtype: np.dtype[Any]
    file: Path
    skip: int
    packed: bool
    modality: str
    notes: tuple[str, ...]
    lead: int = 0
    scaling: tuple[float, float] = (1.0, 0.0)

    @property
    def fault(self) -> str:
        """Why the voxels cannot be complete, judged by the size of their file; "" if they may be."""
        if reason := unreadable(self.file):
            known = {"no such file or folder": "not there", "an empty file": "empty"}
            return f"the data file is {known.get(reason, reason)}"
        size = self.file.stat().st_size - max(self.skip, 0)
        is_short = size * (MAX_RATIO if self.packed else 1) < self._needed_bytes
        return "the data file is shorter than the header says" if is_short else ""

    @property
    def _needed_bytes(self) -> int:
        """Length of the unpacked data, bytes."""
        return self.lead + math.prod(map(int, self.grid.shape)) * self.components * self.dtype.itemsize

    def read_values(self) -> npt.NDArray[Any]:
        """Return the voxels ``[I, J, K]``, scaled as the header specifies.

        Raises:
            ScanError: voxels are missing, damaged, more than the header specifies, or several numbers each.
        """
        if self.components > 1:
            raise ScanError(
                f"{self.path}: expected one number per voxel, got {self.components} (colour or vectors); export the "
                "image as grey values: a CT in HU, a mask as labels."
            )
        fault = self.fault
        if not fault:
            try:
                data = bytearray(self._read_bytes())  # writable
                values = np.frombuffer(data, self.dtype, math.prod(self.grid.shape), self.lead)
                return apply_read_scaling(values.reshape(self.grid.shape, order="F"), *map(np.float64, self.scaling))
            except (ValueError, EOFError, OSError, zlib.error, MemoryError) as error:
                fault = f"truncated or damaged: {error}"
        raise ScanError(
            f"{self.path}: expected an image with all its data, got a truncated or damaged file, or its data file is "
            f"missing ({fault}); copy it again."
        )

    def _read_bytes(self) -> bytes:
        """Return the unpacked data, perhaps with some zeros at the end; unpack at most :data:`PADDING_BYTES` + 1 more.

        Raises:
            ValueError, EOFError: the file contains fewer bytes than needed, or more.
            OSError, zlib.error: the packed data are damaged; they are read to the end, where the checksum is.
        """
        needed = self._needed_bytes
        limit = needed + PADDING_BYTES + 1
        with self.file.open("rb") as stream:
            stream.seek(*((self.skip, os.SEEK_SET) if self.skip >= 0 else (-needed, os.SEEK_END)))
            data = _unpacked(stream, limit) if self.packed else stream.read(limit)
        if not needed <= len(data) < limit or any(data[needed:]):
            raise ValueError(f"the data are {len(data)} bytes, the header says {needed}")
        return data


def _unpacked(stream: BinaryIO, limit: int) -> bytes:
    """Unpack at most ``limit`` bytes of zlib data, or of gzip data in one or more members, as parallel packers write.

    Raises:
        ValueError, EOFError: the data end too early.
        OSError, zlib.error: they are damaged.
    """
    start = stream.tell()
    is_gzip = stream.read(len(GZIP_MARK)) == GZIP_MARK
    stream.seek(start)
    if is_gzip:
        return gzip.GzipFile(fileobj=stream).read(limit)
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(stream.read(), limit)
    if not unpacker.eof and len(data) < limit:
        raise ValueError("the compressed data end too early")
    return data


def read_text_header(path: Path) -> ImageHeader:
    """Read the header of a MetaImage or NRRD file, without checking that the voxels are there.

    Raises:
        ScanError: there is no valid header, or it does not give the type, size or position of the voxels.
    """
    reason = unreadable(path)
    if reason:
        raise ScanError(f"{path}: expected an image, got a truncated or damaged file ({reason}); copy it again.")
    with path.open("rb") as file:
        data = file.read(HEADER_BYTES)
    try:
        return _nrrd(path, data) if path.suffix.lower() in NRRD_SUFFIXES else _metaimage(path, data)
    except ScanError:
        raise
    except (ValueError, OverflowError) as error:
        raise ScanError(
            f"{path}: expected an image, got a header that cannot be read: truncated or damaged ({error}); copy it "
            "again or correct it."
        ) from error


def files_of(path: Path) -> list[Path]:
    """Return the files of a scan: all below a folder; a file and the data files that its header names."""
    if kind_of(path) == "folder":
        return sorted(entry for entry in path.rglob("*") if not entry.is_dir())
    return [path, *data_files(path)]


def data_files(path: Path) -> tuple[Path, ...]:
    """Return the data file of a ``.mhd`` or ``.nhdr`` header; empty for other files or a header that cannot be read."""
    header = _header_or_none(path, (".mhd", ".nhdr"))
    return (header.file,) if header else ()


def data_fault(path: Path) -> str:
    """Return why the voxels of a MetaImage or NRRD file cannot be complete, from its header and file sizes alone.

    Returns:
        "" if they may be complete, for other files, and for headers that cannot be read. The same cause always has the
        same wording.
    """
    header = _header_or_none(path, (".mhd", ".mha", *NRRD_SUFFIXES))
    return header.fault if header else ""


def _header_or_none(path: Path, suffixes: tuple[str, ...]) -> ImageHeader | None:
    try:
        return read_text_header(path) if path.suffix.lower() in suffixes else None
    except ScanError:
        return None


def _fields(data: bytes, separator: str, last: str) -> tuple[dict[str, str], int]:
    """Return the fields of a header and its length in bytes.

    Args:
        data: the beginning of the file.
        separator: between key and value.
        last: the field that ends the header; "" if a blank line does, or the end of a file with detached data.

    Raises:
        ValueError: there is no such end, or a field occurs twice with different values.
    """
    fields: dict[str, str] = {}
    end = 0
    for raw in data.split(b"\n"):
        end += len(raw) + 1
        line = raw.decode("utf-8", "surrogateescape").rstrip("\r")
        key, found, value = (part.strip() for part in line.partition(separator))
        if not found or line.startswith(("#", "NRRD000", "Comment")) or value.startswith("="):
            if not (line or last):
                return fields, end
            continue
        key = key if last else re.sub("^(data|line|byte)(?=file|skip)", r"\1 ", key.lower())
        if fields.setdefault(key, value) != value:
            raise ValueError(f"{key} occurs twice")
        if key == last and value:
            return fields, end
    if last or "data file" not in fields:
        raise ValueError(f"no {last or 'blank line after the header'}")
    return fields, end


# ---- MetaImage -------------------------------------------------------------------------------------------------------


def _metaimage(path: Path, data: bytes) -> ImageHeader:
    fields, end = _fields(data, "=", "ElementDataFile")
    (axes,) = _lengths(fields, "NDims", 1)
    kind, named = _META_TYPES.get(fields.get("ElementType", "").upper()), fields["ElementDataFile"]
    if not kind:
        raise ValueError(f"ElementType {fields.get('ElementType', 'missing')}")
    for name, neutral in (("ElementToIntensityFunctionSlope", 1.0), ("ElementToIntensityFunctionOffset", 0.0)):
        if name in fields and _numbers(fields, name, 1)[0] != neutral:
            raise ScanError(f"{path}: expected unscaled HU, got {name} {fields[name]}; export the CT in HU.")
    spacing, notes = _meta_spacing(path, fields, axes)
    matrix, origin, order = (
        next((name for name in names if name in fields), "")
        for names in (
            ("TransformMatrix", "Rotation", "Orientation"),
            ("Offset", "Position", "Origin"),
            ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"),
        )
    )
    rows = np.reshape(_numbers(fields, matrix, axes * axes), (axes, axes)) if matrix else np.eye(axes)
    offset = np.array(_numbers(fields, origin, axes) if origin else [0.0] * axes)
    mm = _mm_per_unit(path, [fields.get("DistanceUnits", "mm")])
    storage = f"ElementDataFile {named}, BinaryData {fields.get('BinaryData', 'True')}"
    _check_storage(path, _is_list(named) or not _flag(fields, "BinaryData", "true"), storage)
    is_local = named.upper() == "LOCAL"
    return ImageHeader(
        path=path,
        form="MetaImage",
        grid=_grid(path, _lengths(fields, "DimSize", axes), rows * np.array(spacing)[:, None] * mm, offset * mm),
        components=_lengths(fields, "ElementNumberOfChannels", 1)[0] if "ElementNumberOfChannels" in fields else 1,
        dtype=np.dtype(kind).newbyteorder(">" if _flag(fields, order) else "<"),
        file=path if is_local else path.parent / named,
        skip=end if is_local else int(_numbers(fields, "HeaderSize", 1)[0]) if "HeaderSize" in fields else 0,
        packed=_flag(fields, "CompressedData"),
        modality=fields.get("Modality", "").upper().removeprefix("MET_MOD_"),
        notes=notes,
    )


def _meta_spacing(path: Path, fields: dict[str, str], axes: int) -> tuple[list[float], tuple[str, ...]]:
    """Return the distances between voxels, in the file's unit, and notes.

    Raises:
        ScanError: the header gives none, or one that is not above 0.
    """
    name = next((name for name in ("ElementSpacing", "ElementSize") if name in fields), "")
    note = "the header gives the size of the voxels, not their distance: they are assumed to have no gaps between them"
    if not name:
        raise ScanError(
            f"{path}: expected ElementSpacing, found none: the voxels' size is unknown; add it to the header or export "
            "the scan again."
        )
    spacing = _numbers(fields, name, axes)
    if min(spacing) <= 0:
        raise ScanError(f"{path}: expected {name} above 0, got {fields[name]}; correct the header.")
    return spacing, () if name == "ElementSpacing" else (note,)


# ---- NRRD ------------------------------------------------------------------------------------------------------------


def _nrrd(path: Path, data: bytes) -> ImageHeader:
    fields, end = _fields(data, ":", "")
    kind, encoding, endian = (fields.get(key, "").lower() for key in ("type", "encoding", "endian"))
    file, lines = fields.get("data file", ""), fields.get("line skip", "0")
    dtype = np.dtype(_NRRD_TYPES.get(kind, "V1"))
    skip = int(_numbers(fields, "byte skip", 1)[0]) if "byte skip" in fields else 0
    if not re.match(rb"NRRD000[1-5]\s", data):
        raise ValueError("it does not begin with NRRD000")
    if kind not in _NRRD_TYPES:
        raise ValueError(f"type {kind or 'missing'}")
    if dtype.itemsize > 1 and endian not in ("little", "big"):
        raise ValueError(f"endian {endian or 'missing'}")
    if skip < -1 or (skip and encoding != "raw"):
        raise ValueError(f"byte skip {skip}")
    is_other = encoding not in ("raw", "gz", "gzip") or lines != "0" or _is_list(file)
    storage = f"encoding {encoding or 'missing'}, data file {file or 'none'}, line skip {lines}"
    _check_storage(path, is_other, storage)
    sizes = _lengths(fields, "sizes", *_lengths(fields, "dimension", 1))
    steps, origin, spatial, notes = _nrrd_space(path, fields, len(sizes))
    if not all(spatial) and any(spatial[: spatial.index(False)]):  # other axes follow the spatial ones: several volumes
        spatial = [True] * len(sizes)
    return ImageHeader(
        path=path,
        form="NRRD",
        grid=_grid(path, tuple(itertools.compress(sizes, spatial)), steps, origin),
        components=math.prod(n for n, is_space in zip(sizes, spatial, strict=True) if not is_space),
        dtype=dtype.newbyteorder(">" if endian == "big" else "<"),
        file=path.parent / file if file else path,
        skip=skip if file or skip < 0 else skip + end,
        packed=encoding != "raw",
        modality="",
        notes=notes,
    )


def _nrrd_space(
    path: Path, fields: dict[str, str], axes: int
) -> tuple[FloatArray, FloatArray, list[bool], tuple[str, ...]]:
    """Return steps ``[N, D]`` of the spatial axes and the origin ``[D]``, LPS mm; which axes are spatial; notes.

    Raises:
        ScanError: the header gives no voxel size, or directions, origin or units that cannot be used.
        ValueError: there are not as many directions or spacings as axes.
    """
    named = fields.get("space", "").lower().removesuffix("-time").removesuffix("t")
    notes = () if named in _SPACES else ("the NRRD header gives no patient frame: left-posterior-superior is assumed",)
    units = re.findall(r'"([^"]*)"', fields.get("space units", fields.get("units", "")))
    if not {"space directions", "spacings"} & set(fields):
        raise ScanError(
            f"{path}: expected space directions or spacings, found none: the voxels' size is unknown; add them to the "
            "header or export the scan again."
        )
    vectors: list[list[float] | None]
    if "space directions" in fields:
        words = re.findall(r"none|\([^)]*\)", fields["space directions"], re.IGNORECASE)
        vectors = [None if word.lower() == "none" else _vector(word) for word in words]
    else:
        kinds = fields.get("kinds", "").lower().split() or ["domain"] * axes
        spatial = [kind in ("domain", "space", "???") for kind in kinds]
        rows = iter(np.eye(sum(spatial)).tolist())
        spacings = map(float, fields["spacings"].split())
        vectors = [[s * v for v in next(rows)] if w else None for s, w in zip(spacings, spatial, strict=True)]
    steps = np.array([vector for vector in vectors if vector is not None], dtype=np.float64)
    if len(vectors) != axes or steps.ndim != 2:
        raise ValueError(f"{len(vectors)} directions or spacings for {axes} axes")
    origin = np.array(_vector(fields["space origin"])) if "space origin" in fields else np.zeros(steps.shape[1])
    if len(origin) != steps.shape[1] or not np.isfinite(steps).all() or not np.isfinite(origin).all():
        raise ScanError(
            f"{path}: expected finite space directions or spacings and an origin that fits, got "
            f"{fields.get('space directions', fields.get('spacings'))}; correct the header."
        )
    signs = np.ones(steps.shape[1])
    signs[:2] = _SPACES.get(named, (1, 1))[: len(signs)]
    mm = _mm_per_unit(path, [unit for unit in units if unit.strip("? ")] or ["mm"])
    return steps * signs * mm, origin * signs * mm, [vector is not None for vector in vectors], notes


def _vector(text: str) -> list[float]:
    return [float(word) for word in text.strip("() ").split(",")]


# ---- both ------------------------------------------------------------------------------------------------------------


def _grid(path: Path, shape: tuple[int, ...], steps: FloatArray, origin: FloatArray) -> Grid:
    """Return the grid with steps ``[N, D]``, one row per axis, and an origin ``[D]``, LPS mm.

    Only the first three axes and coordinates enter the affine.

    Raises:
        ScanError: this is not one volume, or its geometry is not usable.
    """
    n, d = min(len(steps), 3), min(steps.shape[1], 3)
    affine_lps = np.eye(4)
    affine_lps[:d, :n] = steps[:n, :d].T
    affine_lps[:d, 3] = origin[:d]
    return make_grid(str(path), shape, swap_lps_ras_affine(affine_lps))


def _is_list(named: str) -> bool:
    """Whether the entry for the data file names several files: a list, or a pattern with its range of numbers."""
    first, *rest = named.split() or [""]
    return first.upper() == "LIST" or ("%" in first and 2 <= len(rest) <= 4)


def _check_storage(path: Path, is_other: bool, got: str) -> None:
    if is_other:
        raise ScanError(f"{path}: expected one data file of binary numbers, raw or gzip, got {got}; convert the image.")


def _numbers(fields: dict[str, str], name: str, count: int) -> list[float]:
    numbers = [float(word) for word in fields.get(name, "").split()]
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"expected {count} finite numbers in {name}, got {fields.get(name, 'none')!r}")
    return numbers


def _lengths(fields: dict[str, str], name: str, count: int) -> tuple[int, ...]:
    numbers = tuple(int(word) for word in fields.get(name, "").split())
    if len(numbers) != count or not 0 < count <= 16 or min(numbers) < 1:
        raise ValueError(f"expected {count} lengths above 0 in {name}, got {fields.get(name, 'none')!r}")
    return numbers


def _flag(fields: dict[str, str], name: str, or_else: str = "false") -> bool:
    return fields.get(name, or_else)[:1].lower() in ("t", "1", "y")


def _mm_per_unit(path: Path, units: Iterable[str]) -> float:
    """Return the file's unit of length in mm; 1 if none is given.

    Raises:
        ScanError: the unit is not a known length, or there are several.
    """
    names = {unit.strip(' "').lower() for unit in units} - {"?", ""} or {"mm"}
    factors = {MM_PER_UNIT.get(name, 0.0) for name in names}
    if len(factors) != 1 or 0.0 in factors:
        raise ScanError(
            f"{path}: expected lengths in mm, cm, m or um, got {', '.join(sorted(names))}; correct the header."
        )
    return factors.pop()

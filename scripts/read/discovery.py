"""Finds the scans at a path: one file, a DICOM folder, a folder of scans, or a MONAI datalist.

A scan that cannot be read is still listed; :class:`.reader.ScanReader` refuses it by name when it is read, so that the
others run. Only a request that cannot be fulfilled at all raises an error here.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.paths import kind_of, unreadable
from .dicom_header import SliceHeader, begins_as_dataset, read_headers
from .dicom_series import Series, group_series, localizer_note
from .scan import IMAGE_SUFFIXES, ScanError

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})  # such a file is meant to be DICOM, even if it is damaged
SECTIONS = ("training", "validation", "test", "testing")  # sections read by default; others must be asked for

RESULT_RECORD = "nodules.json"  # in the folder of each result

_PARTIAL = re.compile(r"\.(part|partial|filepart|crdownload|download|tmp)$")  # suffixes of unfinished copies
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")

Entry = dict[str, Any]


def find_scans(source: str | Path, *, series: str = "auto") -> list[Entry]:
    """List the scans of a file, folder or datalist.

    Args:
        source: an image file (.mhd, .mha, .nrrd, .nii, .nii.gz), a DICOM file or folder, a folder with scans at any
            depth, or a datalist (.json: a list of items, or a dict of such lists; those in :data:`SECTIONS` are taken,
            one after the other).
        series: which DICOM series of a study: "auto" (the thinnest axial CT), "all" (each CT series), or a
            SeriesInstanceUID, in which case nothing else is listed.

    Returns:
        At least one MONAI datalist item: ``image`` (a path, or the paths of the slices sorted along their normal),
        ``name`` (safe for file names, unique even ignoring case), ``source`` (the file or folder), ``notes`` (one line
        per note, "" for none: MONAI turns an empty list into ``None``), and for a datalist the other keys of its item,
        unchanged except for ``lung_mask``, which is resolved against the datalist's folder.

    Raises:
        ScanError: the input does not exist or contains no scan, the datalist is malformed, or the series is unknown.
    """
    path = Path(source)
    kind = kind_of(path)
    is_list = kind == "file" and path.suffix.lower() == ".json"
    if kind not in ("file", "folder"):
        there = kind.replace("no such file or folder", "nothing there")
        raise ScanError(f"{path}: expected a scan, a folder or a datalist, found {there}; check the path.")
    seen: list[Series] = []
    if is_list:
        items = _checked_items(path)
        entries = [entry for item in items for entry in _item_entries(path.parent, item, series, seen)]
    else:
        entries = _entries_at(path, series, seen)
    if not entries and _is_uid(series):
        known = "; ".join(s.describe() for s in seen) or "no DICOM series"
        raise ScanError(f"{path}: expected series '{series}', found {known}; name one of these, or 'auto' or 'all'.")
    if not entries:
        raise ScanError(
            f"{path}: expected DICOM slices or {', '.join(IMAGE_SUFFIXES)} files, found none; check the path."
        )
    return with_unique_names(entries)


def only_scan(source: str | Path, *, series: str = "auto") -> Entry:
    """Return the only scan of a file, folder or datalist, see :func:`find_scans`.

    Raises:
        ScanError: there is no scan, or there are several.
    """
    scans = find_scans(source, series=series)
    if len(scans) > 1:
        names = ", ".join([scan["name"] for scan in scans[:3]] + ["…"] * (len(scans) > 3))
        raise ScanError(f"{source}: expected one scan, got {len(scans)} ({names}); name one of them.")
    return scans[0]


def is_image_file(path: str | Path) -> bool:
    """Whether the suffix is that of a supported image format other than DICOM."""
    return str(path).lower().endswith(IMAGE_SUFFIXES)


def looks_like_dicom(path: Path) -> bool:
    """Whether the file has the DICOM mark after its 128-byte preamble, or a DICOM suffix."""
    return path.suffix.lower() in DICOM_SUFFIXES or (kind_of(path) == "file" and _start(path)[128:132] == b"DICM")


def _start(path: Path) -> bytes:
    """Return the first 512 bytes of a regular file; empty if it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _entries_at(path: Path, series: str, seen: list[Series]) -> list[Entry]:
    """Return the entries of a file or folder; a DICOMDIR stands for its folder.

    Raises:
        ScanError: the folder itself cannot be read.
    """
    if kind_of(path) == "file" and path.name.upper() == "DICOMDIR":
        path = path.parent
    closed: list[Path] = []
    files = [path] if kind_of(path) == "file" else list(files_below(path, closed))
    if closed == [path]:
        raise ScanError(f"{path}: expected a folder that can be read, got one that cannot; correct its permissions.")
    return _file_entries(files, str(path), series, seen, closed)


def _file_entries(
    files: Sequence[Path], source: str, series: str, seen: list[Series], closed: Sequence[Path]
) -> list[Entry]:
    """Return the entries of the image files and DICOM studies among ``files``.

    Args:
        files: the files to look at.
        source: source of a series whose slices lie in several folders.
        series: as in :func:`find_scans`; for a SeriesInstanceUID, only that series is returned.
        seen: every series found is appended to it.
        closed: folders that cannot be read; they may contain slices of any series around them.
    """
    entries = [_entry(str(path), scan_stem(path), str(path)) for path in files if is_image_file(path)]
    studies, broken = _read_studies(slice_files([path for path in files if not is_image_file(path)]))
    of_series: list[Entry] = []
    reported: set[Path] = set()  # damaged files and closed folders that an entry already contains
    for study in studies:
        seen += study
        for chosen, notes in _choose(study, series):
            folders = {Path(header.path).parent for header in chosen.slices}
            # A damaged file may be a slice of any series in its folder: each of them is then refused, so that none is
            # read with a slice missing.
            damaged = [path for path in broken if path.parent in folders]
            # The same holds for a folder that cannot be read, inside a series' folder or beside its several folders.
            around = folders | ({folder.parent for folder in folders} if len(folders) > 1 else set())
            damaged += [path for path in closed if any(path.is_relative_to(folder) for folder in around)]
            reported.update(damaged)
            paths = list(dict.fromkeys(header.path for header in chosen.slices)) + [str(path) for path in damaged]
            where = str(min(folders)) if len(folders) == 1 else source
            of_series.append(_entry(paths, chosen.uid, where, notes))
    if _is_uid(series):
        return of_series
    # One entry stands for all damaged files of a folder.
    alone = {path.parent: path for path in reversed(broken) if path not in reported}
    entries += of_series + [_entry([str(path)], scan_stem(path), str(path.parent)) for path in sorted(alone.values())]
    return entries + [_entry([str(path)], "closed", str(path)) for path in closed if path not in reported]


def files_below(folder: Path, closed: list[Path] | None = None) -> Iterator[Path]:
    """Yield every file below a folder in a stable order, following links but visiting no folder twice.

    Broken links, pipes and the like are included. Hidden files and folders are left out, and so are the results of a
    run, whose masks look like scans.

    Args:
        folder: where to look.
        closed: folders that cannot be read are appended to it.
    """
    visited = set()

    def note(error: OSError) -> None:
        if closed is not None:
            closed.append(Path(os.fsdecode(error.filename or folder)))

    for parent, folders, names in os.walk(folder, followlinks=True, onerror=note):
        real = os.path.realpath(parent)
        if real in visited or is_result(Path(parent)):
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def is_result(folder: Path) -> bool:
    """Whether a folder contains the result of a scan, recognised by the first bytes of its record."""
    first = _start(folder / RESULT_RECORD)
    return all(f'"{key}"'.encode() in first for key in ("schema_version", "disclaimer"))


def slice_files(paths: Sequence[Path]) -> list[Path]:
    """Return the DICOM files, and files that should be: slices that are empty, truncated, unfetched or unreadable.

    A file with another extension (such as ``.txt``) is ignored unless it is named like the slices beside it. A file
    without extension counts as a slice if its name contains a digit and it cannot be read, or begins as DICOM does
    without a preamble; beside slices, also if it contains other binary data.
    """
    dicom = {path for path in paths if looks_like_dicom(path)}
    shapes = {(path.parent, _shape(path.name)) for path in dicom}
    folders = {path.parent for path in dicom}
    return [
        path
        for path in paths
        if path.name.upper() != "DICOMDIR"
        and (path in dicom or (path.parent, _shape(path.name)) in shapes or _may_be_slice(path, path.parent in folders))
    ]


def _may_be_slice(path: Path, is_beside_slices: bool) -> bool:
    if not re.search(r"\d", path.name) or re.search(r"\.[A-Za-z]\w{0,7}$", path.name):
        return False
    kind = kind_of(path)
    start = _start(path) if kind == "file" else b""
    is_missing = bool(unreadable(path)) and kind not in ("a named pipe", "a socket", "a device")
    return is_missing or begins_as_dataset(start) or (is_beside_slices and b"\0" in start)


def _shape(name: str) -> str:
    """Return a file's name with every number, decimal or hexadecimal, replaced by "#", and without a copy's suffix."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "#", _PARTIAL.sub("", name.lower()))


def _read_studies(paths: Sequence[Path]) -> tuple[list[list[Series]], list[Path]]:
    """Return the series of each study, in the order of the UIDs, and the files whose headers cannot be read."""
    studies: dict[str, list[SliceHeader]] = {}
    folders, broken = set(), []
    for path in paths:
        try:
            for header in read_headers(path):
                studies.setdefault(header.study_uid, []).append(header)
                folders.add(path.parent)
        except ScanError:
            broken.append(path)
    # A file that merely begins like DICOM and has no slices beside it is something else.
    broken = [path for path in broken if path.parent in folders or looks_like_dicom(path) or unreadable(path)]
    return [group_series(headers) for _, headers in sorted(studies.items())], broken


def _choose(study: list[Series], series: str) -> list[tuple[Series, Iterator[str]]]:
    """Return the series of a study to read, each with its notes.

    If none is fit, "auto" and "all" return the best one, which is refused when it is read.
    """
    ranked = sorted(study, key=Series.rank)
    is_best = not ranked[0].shortcomings()
    choices = {
        "auto": (ranked[:1], "thinnest axial CT" if is_best else "best of the study"),
        "all": ([s for s in ranked if s.is_fit] or ranked[:1], "each CT series is read"),
    }
    chosen, reason = choices.get(series) or ([s for s in ranked if s.uid == series], "named")
    return [(s, _choice_notes(s, ranked, reason)) for s in chosen]


def _choice_notes(chosen: Series, study: list[Series], reason: str) -> Iterator[str]:
    """Yield notes: why this series was chosen, what else the study contains, and how many localizers were ignored."""
    if len(study) == 1 and chosen.other_part:
        yield f"series {chosen.describe()}: {', '.join(chosen.shortcomings())}"
    if len(study) > 1:
        others = [(s.describe(), s.shortcomings() or ["axial CT, not thinner"]) for s in study if s is not chosen]
        is_best = reason == "thinnest axial CT"
        listed = "; ".join(f"{name}: {', '.join(faults)}" if is_best else name for name, faults in others)
        yield f"series {chosen.describe()} of {len(study)} in the study: {reason}. Others: {listed}"
    if chosen.ignored_localizers:
        yield localizer_note(chosen.ignored_localizers)


def read_datalist(path: Path, error: type[UserError] = ScanError) -> Any:
    """Return the content of a datalist file, of whatever structure.

    Args:
        path: the file.
        error: the type of error to raise.

    Raises:
        UserError: of type ``error``; the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as cause:
        raise error(
            f"datalist {path}: expected JSON, got something else ({cause}); correct it or choose another file."
        ) from cause


def _checked_items(path: Path) -> list[Entry]:
    """Return the items of a datalist's sections, as dicts with a path or a list of paths.

    Raises:
        ScanError: the datalist or an item is malformed, or has none of the sections.
    """
    content = read_datalist(path)
    sections = content if isinstance(content, dict) else {}
    found = {name: items for name, items in sections.items() if name in SECTIONS and isinstance(items, list)}
    if isinstance(content, list):
        found = {"": content}
    if not found:
        options = " or ".join(f"'{name}'" for name in SECTIONS)
        there = [name for name, items in sections.items() if isinstance(items, list)] or list(sections)
        raise ScanError(
            f"{path}: expected a list of items, or section {options} with a list of items, found "
            f"{', '.join(there) or type(content).__name__}; correct the datalist."
        )
    entries = []
    for name, items in found.items():
        for number, item in enumerate(items):
            entry: Entry = item if isinstance(item, dict) else {"image": item}
            image, mask = entry.get("image"), entry.get("lung_mask")
            paths = image if isinstance(image, list) else [image]
            if not paths or not all(isinstance(path, str) for path in paths) or not isinstance(mask, str | None):
                raise ScanError(
                    f"{path}, {name + ', ' if name else ''}item {number}: expected {{'image': path, …}}, got "
                    f"{str(item)[:80]}; correct the datalist."
                )
            entries.append(entry)
    return entries


def _item_entries(folder: Path, item: Entry, series: str, seen: list[Series]) -> list[Entry]:
    """Return the entries of one datalist item.

    There is one entry, unless all series are requested, or one by its UID, which the item may not contain.
    """
    image, mask = item["image"], item.get("lung_mask")
    rest = {key: value for key, value in item.items() if key != "lung_mask"}
    if mask:
        rest["lung_mask"] = str(folder / os.path.expanduser(mask))
    paths = [folder / os.path.expanduser(path) for path in (image if isinstance(image, list) else [image])]
    first, is_one = paths[0], len(paths) == 1
    source = str(first if is_one else first.parent)
    kind = kind_of(first) if is_one else ""
    if is_one and is_image_file(first):
        found = [] if _is_uid(series) else [_entry(source, scan_stem(first), source)]
    elif is_one and kind not in ("file", "folder"):
        found = [_entry(source, "item", source)]
    else:
        closed: list[Path] = []
        files = list(files_below(first, closed)) if kind == "folder" else paths
        found = _file_entries(files, source, series, seen, closed)
        if not _is_uid(series) and (not found or (len(found) > 1 and series == "auto")):  # reading it raises the reason
            whole = source if is_one else [str(path) for path in paths]
            found = [_entry(whole, "item", str(first))]  # not the folder's name, which may be a patient's
    return [{**rest, **entry} for entry in found]


def _entry(image: str | list[str], name: str, source: str, notes: Iterable[str] = ()) -> Entry:
    return {"image": image, "name": name, "source": source, "notes": "\n".join(notes)}


def with_unique_names(entries: list[Entry]) -> list[Entry]:
    """Return the entries with names that are safe on any file system and distinct even ignoring case."""
    taken: set[str] = set()
    result = []
    for entry in entries:
        base = _UNSAFE.sub("_", entry["name"]).strip("._-") or "scan"
        numbered = (f"{base}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([base], numbered) if name.lower() not in taken)
        taken.add(name.lower())
        result.append({**entry, "name": name})
    return result


def scan_stem(path: Path) -> str:
    """Return the file name without its image or ``.dcm`` suffix."""
    endings = (suffix for suffix in (*IMAGE_SUFFIXES, ".dcm") if path.name.lower().endswith(suffix))
    return path.name[: len(path.name) - len(next(endings, ""))]


def _is_uid(series: str) -> bool:
    return series not in ("auto", "all")

"""Which scans a path holds: one file, a DICOM folder, a folder of scans, or a MONAI datalist.

Finding never judges: a scan that cannot be read is still listed, and :class:`.reader.ScanReader` refuses it by
name when its turn comes, so that the others run. Only a request that makes no sense at all raises here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.paths import is_below, kind_of, unreadable
from .dicom_header import SliceHeader, begins_as_dataset, read_headers
from .dicom_series import Series, group_series, localizer_note
from .scan import IMAGE_SUFFIXES, ScanError

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})  # such a file is meant to be DICOM, even a broken one
SECTIONS = ("training", "validation", "test", "testing")  # of a datalist that hold scans; others must be asked for

RESULT_RECORD = "nodules.json"  # in the folder of each result
RESULT_MARK_BYTES = 512  # the record names its schema and disclaimer first

_PARTIAL = re.compile(r"\.(part|partial|filepart|crdownload|download|tmp)$")  # of copies under way
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")

Entry = dict[str, Any]


def find_scans(source: str | Path, *, series: str = "auto", section: str | None = None) -> list[Entry]:
    """List the scans of a file, folder or datalist.

    Args:
        source: an image file (.mhd, .mha, .nrrd, .nii, .nii.gz), a DICOM file or folder, a folder with scans at any
            depth, or a datalist (.json: a list of items, or a dict of such lists).
        series: which DICOM series of a study: "auto" (the thinnest axial CT), "all" (each CT series), or a
            SeriesInstanceUID, in which case nothing else is listed.
        section: the part of a datalist to take; default all of them, one after the other.

    Returns:
        At least one MONAI datalist item: ``image`` (a path, or the paths of the slices sorted along their normal),
        ``name`` (safe for files, unique without regard to case), ``source`` (the file or folder), ``notes`` (one
        line per note, "" for none: MONAI turns an empty list into ``None``), and for a datalist the other keys
        of its item, untouched but for ``lung_mask``, a path that starts at the datalist's folder.

    Raises:
        ScanError: no such input, nothing in it, a datalist of another shape, an unknown section or series.
    """
    path = Path(source)
    kind = kind_of(path)
    if kind not in ("file", "folder"):
        kind = kind.replace("no such file or folder", "nothing there")
        raise ScanError(f"{path}: expected a scan, a folder or a datalist, found {kind}; check the path.")
    if kind == "file" and path.suffix.lower() == ".json":
        entries, seen = _datalist_entries(path, series, section)
    elif section is not None:
        raise ScanError(f"{path}: section '{section}' asks for a datalist (.json), got none; leave it out.")
    else:
        entries, seen = _entries_at(path, series)
    if not entries and series not in ("auto", "all"):
        known = "; ".join(s.describe() for s in seen) or "no DICOM series"
        raise ScanError(f"{path}: expected series '{series}', found {known}; name one of these, or 'auto' or 'all'.")
    if not entries:
        raise ScanError(
            f"{path}: expected DICOM slices or {', '.join(IMAGE_SUFFIXES)} files, found none; check the path."
        )
    return with_unique_names(entries)


def is_image_file(path: str | Path) -> bool:
    """Whether the suffix is one of the image formats read here (DICOM apart)."""
    return str(path).lower().endswith(IMAGE_SUFFIXES)


def looks_like_dicom(path: Path) -> bool:
    """Whether the file has the DICOM mark after its 128-byte preamble, or a suffix that promises it."""
    return path.suffix.lower() in DICOM_SUFFIXES or (kind_of(path) == "file" and _start(path)[128:132] == b"DICM")


def _start(path: Path) -> bytes:
    """The first bytes of a regular file; empty where it cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _entries_at(path: Path, series: str) -> tuple[list[Entry], list[Series]]:
    """Entries of a file or folder, and every series seen there; a DICOMDIR stands for the folder it lies in."""
    if kind_of(path) == "file" and path.name.upper() == "DICOMDIR":
        path = path.parent
    closed: list[Path] = []
    files = [path] if kind_of(path) == "file" else list(files_below(path, closed))
    if closed == [path]:
        raise ScanError(f"{path}: expected a folder that can be read, got one that cannot; mend its rights.")
    return _file_entries(files, str(path), series, closed)


def _file_entries(
    files: Sequence[Path], source: str, series: str, closed: Sequence[Path] = ()
) -> tuple[list[Entry], list[Series]]:
    """Entries of the image files and DICOM studies among ``files``, and every series seen.

    ``closed`` are folders that cannot be read: what they hold may belong to any series around them.
    """
    images = [] if _is_uid(series) else [path for path in files if is_image_file(path)]
    entries = [_entry(str(path), scan_stem(path), str(path)) for path in images]
    studies, broken = _read_studies(slice_files([path for path in files if not is_image_file(path)]))
    seen: list[Series] = []
    told: set[Path] = set()  # damaged files and closed folders that an entry already holds
    for study in studies:
        seen += study
        for chosen, notes in _choose(study, series):
            folders = {Path(header.path).parent for header in chosen.slices}
            # A damaged file may be a slice of any series beside it: each of them is then refused, never silently short.
            damaged = [path for path in broken if path.parent in folders]
            damaged += [path for path in closed if _may_hold_slices(path, folders)]
            paths = list(dict.fromkeys(header.path for header in chosen.slices)) + [str(path) for path in damaged]
            told.update(damaged)
            where = str(min(folders)) if len(folders) == 1 else source
            entries.append(_entry(paths, chosen.uid, where, notes))
    alone = {} if _is_uid(series) else {path.parent: path for path in reversed(broken) if path not in told}
    # One entry tells of a folder of damaged files.
    entries += [_entry([str(path)], scan_stem(path), str(path.parent)) for path in sorted(alone.values())]
    entries += [_entry([str(path)], "closed", str(path)) for path in closed if path not in told and not _is_uid(series)]
    return entries, seen


def _may_hold_slices(closed: Path, folders: set[Path]) -> bool:
    """Whether a folder that cannot be read lies in one of a series, or beside several of them."""
    return any(is_below(closed, folder) for folder in folders) or (
        len(folders) > 1 and any(is_below(closed, folder.parent) for folder in folders)
    )


def files_below(folder: Path, closed: list[Path] | None = None) -> Iterator[Path]:
    """Every file below a folder in a stable order; links are followed, but never in a circle.

    Links to nothing, pipes and the like are listed too. Folders that cannot be read go into ``closed``. Left out: what
    is hidden, and the results of a run, whose masks look like scans.
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
    """Whether a folder holds the result of a scan, told by the first lines of its record."""
    try:
        with (folder / RESULT_RECORD).open("rb") as file:
            first = file.read(RESULT_MARK_BYTES)
    except OSError:
        return False
    return all(f'"{key}"'.encode() in first for key in ("schema_version", "disclaimer"))


def slice_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are DICOM, and those that should be: empty, cut, unfetched or unreadable ones among slices.

    A file with an ending of its own (``.txt``) is somebody else's, unless it is named like the slices beside it. One
    without is a slice that is missing when it is named with a digit and cannot be read, or begins as DICOM does
    without its preamble; beside slices also when it holds binary data of another kind.
    """
    result = []
    shapes: dict[Path, set[str]] = {}
    for path in paths:
        if looks_like_dicom(path):
            shapes.setdefault(path.parent, set()).add(_shape(path.name))
    for path in paths:
        beside = shapes.get(path.parent, set())
        if path.name.upper() == "DICOMDIR":
            continue
        if looks_like_dicom(path) or _shape(path.name) in beside:
            result.append(path)
        elif re.search(r"\d", path.name) and not re.search(r"\.[A-Za-z]\w{0,7}$", path.name):
            start = _start(path) if kind_of(path) == "file" else b""
            is_missing = bool(unreadable(path)) and kind_of(path) not in ("a named pipe", "a socket", "a device")
            if is_missing or begins_as_dataset(start) or (beside and b"\0" in start):
                result.append(path)
    return result


def _shape(name: str) -> str:
    """A file's name with every number, decimal or hexadecimal, replaced by one sign, without the ending of a copy."""
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "#", _PARTIAL.sub("", name.lower()))


def _read_studies(paths: Sequence[Path]) -> tuple[list[list[Series]], list[Path]]:
    """The series of each study, in the order of the UIDs, and the files whose header cannot be read."""
    studies: dict[str, list[SliceHeader]] = {}
    broken = []
    for path in paths:
        try:
            headers = read_headers(path)
        except ScanError:
            broken.append(path)
            continue
        for header in headers:
            studies.setdefault(header.study_uid, []).append(header)
    folders = {Path(header.path).parent for headers in studies.values() for header in headers}
    # Alone, what only began like DICOM is something else.
    broken = [path for path in broken if path.parent in folders or looks_like_dicom(path) or unreadable(path)]
    return [group_series(headers) for _, headers in sorted(studies.items())], broken


def _choose(study: list[Series], series: str) -> list[tuple[Series, list[str]]]:
    """The series to read of one study, each with its notes; where none is fit, the best is left to be refused."""
    ranked = sorted(study, key=Series.rank)
    if _is_uid(series):
        chosen, reason = [s for s in ranked if s.uid == series], "named"
    elif series == "all":
        fit = [s for s in ranked if s.is_fit]
        chosen, reason = fit or ranked[:1], "each CT series is read"
    else:
        chosen, reason = ranked[:1], "thinnest axial CT" if not ranked[0].shortcomings() else "best of the study"
    return [(s, _choice_notes(s, ranked, reason)) for s in chosen]


def _choice_notes(chosen: Series, study: list[Series], reason: str) -> list[str]:
    """Say what else the study holds, and why this series was taken."""
    notes = []
    if len(study) == 1 and chosen.other_part:
        notes.append(f"series {chosen.describe()}: {', '.join(chosen.shortcomings())}")
    if len(study) > 1:
        others = [s.describe() for s in study if s is not chosen]
        if reason == "thinnest axial CT":
            others = [
                f"{s.describe()}: {', '.join(s.shortcomings()) or 'axial CT, not thinner'}"
                for s in study
                if s is not chosen
            ]
        notes.append(f"series {chosen.describe()} of {len(study)} in the study: {reason}. Others: {'; '.join(others)}")
    if chosen.ignored_localizers:
        notes.append(localizer_note(chosen.ignored_localizers))
    return notes


def _datalist_entries(path: Path, series: str, section: str | None) -> tuple[list[Entry], list[Series]]:
    entries: list[Entry] = []
    seen: list[Series] = []
    for name, items in _sections(path, section).items():
        for number, item in enumerate(items):
            where = f"{path}, {name + ', ' if name else ''}item {number}"
            found, series_seen = _item_entries(path.parent, _checked_item(where, item), series)
            entries += found
            seen += series_seen
    return entries, seen


def read_datalist(path: Path, error: type[UserError] = ScanError) -> Any:
    """What a datalist file holds, whatever its shape.

    Raises:
        UserError: of the kind ``error``; it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as cause:
        raise error(
            f"datalist {path}: expected JSON, got something else ({cause}); correct it or choose another file."
        ) from cause


def _sections(path: Path, section: str | None) -> dict[str, list[Any]]:
    """The lists of scans in a datalist by name, or the one that is asked for; a plain list has the name ""."""
    content = read_datalist(path)
    if isinstance(content, list) and section is None:
        return {"": content}
    named = content if isinstance(content, dict) else {}
    wanted = SECTIONS if section is None else (section,)
    options = " or ".join(f"'{name}'" for name in wanted)
    found = {name: items for name, items in named.items() if name in wanted and isinstance(items, list)}
    if not found:
        there = [name for name, items in named.items() if isinstance(items, list)] or list(named)
        raise ScanError(
            f"{path}: expected {'a list of items, or ' if section is None else ''}section "
            f"{options} with a list of items, found {', '.join(there) or type(content).__name__}; correct the datalist "
            "or the section."
        )
    return found


def _checked_item(where: str, item: Any) -> Entry:
    """An item as a dict whose image is a path or a list of paths."""
    entry: Entry = item if isinstance(item, dict) else {"image": item}
    image, mask = entry.get("image"), entry.get("lung_mask")
    paths = image if isinstance(image, list) else [image]
    if not paths or not all(isinstance(path, str) for path in paths) or not isinstance(mask, str | None):
        raise ScanError(f"{where}: expected {{'image': path, …}}, got {str(item)[:80]}; correct the datalist.")
    return entry


def _item_entries(folder: Path, item: Entry, series: str) -> tuple[list[Entry], list[Series]]:
    """Entries of one datalist item: one, unless every series is asked for or the named one lies elsewhere."""
    image, mask = item["image"], item.get("lung_mask")
    rest = {key: value for key, value in item.items() if key != "lung_mask"}
    if mask:
        rest["lung_mask"] = str(folder / os.path.expanduser(mask))
    paths = [folder / os.path.expanduser(path) for path in (image if isinstance(image, list) else [image])]
    first = paths[0]
    seen: list[Series] = []
    source = str(first if len(paths) == 1 else first.parent)
    kind = kind_of(first) if len(paths) == 1 else ""
    if kind and (is_image_file(first) or kind not in ("file", "folder")):
        found = [_entry(source, scan_stem(first) if is_image_file(first) else "item", source)]
        found = [] if is_image_file(first) and _is_uid(series) else found
    else:
        closed: list[Path] = []
        files = list(files_below(first, closed)) if kind == "folder" else paths
        found, seen = _file_entries(files, source, series, closed)
        if not _is_uid(series) and (not found or (len(found) > 1 and series == "auto")):  # reading the item tells why
            whole = source if len(paths) == 1 else [str(path) for path in paths]
            found = [_entry(whole, "item", str(first))]  # a folder's name may be a patient's
    return [{**rest, **entry} for entry in found], seen


def _entry(image: str | list[str], name: str, source: str, notes: Sequence[str] = ()) -> Entry:
    return {"image": image, "name": name, "source": source, "notes": "\n".join(notes)}


def with_unique_names(entries: list[Entry]) -> list[Entry]:
    """Make names safe for any file system, and distinct even where it ignores case."""
    taken: set[str] = set()
    result = []
    for entry in entries:
        base = _UNSAFE.sub("_", entry["name"]).strip("._-") or "scan"
        name, n = base, 1
        while name.lower() in taken:
            n += 1
            name = f"{base}-{n}"
        taken.add(name.lower())
        result.append({**entry, "name": name})
    return result


def scan_stem(path: Path) -> str:
    """File name without its image or DICOM suffix."""
    lower = path.name.lower()
    for suffix in (*IMAGE_SUFFIXES, ".dcm"):
        if lower.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def _is_uid(series: str) -> bool:
    return series not in ("auto", "all")

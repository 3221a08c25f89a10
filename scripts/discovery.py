"""Which scans a path holds: one file, a DICOM folder, a folder of scans, or a MONAI datalist.

Finding never judges: a scan that cannot be read is still listed, and :class:`~scripts.reader.ScanReader` refuses it by
name when its turn comes, so that the others run. Only a request that makes no sense at all raises here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .dicom_series import Series, SliceHeader, group_series, looks_like_dicom, read_header
from .scan import ScanError

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd")
SECTIONS = ("training", "validation", "test", "testing")  # of a datalist that hold scans; others must be asked for

RESULT_RECORD = "nodules.json"  # in the folder of each result
RESULT_MARK_BYTES = 512  # the record names its schema and disclaimer first

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
    if not path.exists():
        raise ScanError(f"{path}: expected a scan, a folder or a datalist, found nothing there; check the path.")
    if path.suffix.lower() == ".json":
        entries, seen = _datalist_entries(path, series, section)
    elif section is not None:
        raise ScanError(f"{path}: section '{section}' asks for a datalist (.json), got none; leave it out.")
    else:
        entries, seen = _path_entries(path, series)
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


def _path_entries(path: Path, series: str) -> tuple[list[Entry], list[Series]]:
    """Entries of a file or folder, and every series seen there."""
    return _file_entries([path] if path.is_file() else list(files_below(path)), str(path), series)


def _file_entries(files: Sequence[Path], source: str, series: str) -> tuple[list[Entry], list[Series]]:
    """Entries of the image files and DICOM studies among ``files``, and every series seen."""
    images = [] if _is_uid(series) else [path for path in files if is_image_file(path)]
    entries = [_entry(str(path), scan_stem(path), str(path)) for path in images]
    studies, broken = _read_studies([path for path in files if not is_image_file(path) and looks_like_dicom(path)])
    seen: list[Series] = []
    told: set[Path] = set()  # folders whose damaged files an entry already holds
    for study in studies:
        seen += study
        for chosen, notes in _choose(study, series):
            folders = {Path(header.path).parent for header in chosen.slices}
            # A damaged file may be a slice of any series beside it: each of them is then refused, never silently short.
            damaged = [path for path in broken if path.parent in folders]
            paths = [header.path for header in chosen.slices] + [str(path) for path in damaged]
            told |= folders
            where = str(min(folders)) if len(folders) == 1 else source
            entries.append(_entry(paths, chosen.uid, where, notes))
    for path in broken:
        if path.parent not in told and not _is_uid(series):
            told.add(path.parent)  # one entry tells of a folder of damaged files
            entries.append(_entry([str(path)], scan_stem(path), str(path.parent)))
    return entries, seen


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder in a stable order; links are followed, but never in a circle.

    Left out: what is hidden, and the results of a run, whose masks look like scans.
    """
    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
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


def _read_studies(paths: Sequence[Path]) -> tuple[list[list[Series]], list[Path]]:
    """The series of each study, in the order of the UIDs, and the files whose header cannot be read."""
    studies: dict[str, list[SliceHeader]] = {}
    broken = []
    for path in paths:
        if path.name.upper() == "DICOMDIR":
            continue
        try:
            header = read_header(path)
        except ScanError:
            broken.append(path)
            continue
        if header is not None:
            studies.setdefault(header.study_uid, []).append(header)
    return [group_series(headers) for _, headers in sorted(studies.items())], broken


def _choose(study: list[Series], series: str) -> list[tuple[Series, list[str]]]:
    """The series to read of one study, each with its notes; where none is fit, the best is left to be refused."""
    ranked = sorted(study, key=Series.rank)
    if _is_uid(series):
        chosen, reason = [s for s in ranked if s.uid == series], "named"
    elif series == "all":
        fit = [s for s in ranked if s.modality == "CT" and not s.slices[0].is_localizer]
        chosen, reason = fit or ranked[:1], "each CT series is read"
    else:
        chosen, reason = ranked[:1], "thinnest axial CT" if not ranked[0].shortcomings() else "best of the study"
    return [(s, _choice_notes(s, ranked, reason)) for s in chosen]


def _choice_notes(chosen: Series, study: list[Series], reason: str) -> list[str]:
    """Say what else the study holds, and why this series was taken."""
    notes = []
    if len(study) > 1:
        others = "; ".join(
            f"{s.describe()}: {', '.join(s.shortcomings()) or 'axial CT, not thinner'}"
            for s in study
            if s is not chosen
        )
        if reason != "thinnest axial CT":
            others = "; ".join(s.describe() for s in study if s is not chosen)
        notes.append(f"series {chosen.describe()} of {len(study)} in the study: {reason}. Others: {others}")
    if chosen.ignored_localizers:
        notes.append(f"{chosen.ignored_localizers} localizer image(s) of the series ignored")
    return notes


def _datalist_entries(path: Path, series: str, section: str | None) -> tuple[list[Entry], list[Series]]:
    entries: list[Entry] = []
    seen: list[Series] = []
    for where, item in _datalist_items(path, section):
        found, series_seen = _item_entries(path.parent, _checked_item(where, item), series)
        entries += found
        seen += series_seen
    return entries, seen


def _datalist_items(path: Path, section: str | None) -> list[tuple[str, Any]]:
    """The items of a datalist, each with the words that name it in a message."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScanError(
            f"{path}: expected a datalist in JSON, got something else ({error}); correct the file."
        ) from error
    if isinstance(content, list) and section is None:
        return [(f"{path}, item {n}", item) for n, item in enumerate(content)]
    if not isinstance(content, dict):
        kind = "a plain list" if isinstance(content, list) else f"a {type(content).__name__}"
        wanted = "a list of items or a dict of lists" if section is None else f"a dict with section '{section}'"
        raise ScanError(f"{path}: expected {wanted}, got {kind}; correct the datalist or the section.")
    sections = {
        key: value for key, value in content.items() if isinstance(value, list) and (key in SECTIONS or key == section)
    }
    if not sections or (section is not None and section not in sections):
        wanted = "one of training, validation, testing" if section is None else f"section '{section}'"
        found = ", ".join(sections) or ", ".join(str(key) for key in content) or "nothing"
        raise ScanError(
            f"{path}: expected {wanted} with a list of items, found {found}; correct the datalist or section."
        )
    chosen = sections if section is None else {section: sections[section]}
    return [(f"{path}, {key}, item {n}", item) for key, items in chosen.items() for n, item in enumerate(items)]


def _checked_item(where: str, item: Any) -> Entry:
    """An item as a dict whose image is a path or a list of paths."""
    if isinstance(item, str):
        item = {"image": item}
    image = item.get("image") if isinstance(item, dict) else None
    if not (_is_text(image) or (isinstance(image, list) and image and all(_is_text(path) for path in image))):
        raise ScanError(f"{where}: expected {{'image': path, …}}, got {str(item)[:80]}; correct the datalist.")
    return item


def _item_entries(folder: Path, item: Entry, series: str) -> tuple[list[Entry], list[Series]]:
    """Entries of one datalist item: one, unless every series is asked for or the named one lies elsewhere."""
    image = item["image"]
    mask = {"lung_mask": str(folder / Path(item["lung_mask"]).expanduser())} if item.get("lung_mask") else {}
    item = {key: value for key, value in item.items() if key != "lung_mask"} | mask  # null: there is none
    paths = [folder / Path(path).expanduser() for path in ([image] if _is_text(image) else image)]
    if len(paths) == 1 and not paths[0].is_dir():
        entries = [] if _is_uid(series) and is_image_file(paths[0]) else [_entry(*_plain(paths[0]))]
        return [{**item, **entry} for entry in entries], []
    files = paths if len(paths) > 1 else list(files_below(paths[0]))
    found, seen = _file_entries(files, str(paths[0] if len(paths) == 1 else paths[0].parent), series)
    if not _is_uid(series) and (not found or (len(found) > 1 and series == "auto")):  # reading the item tells why
        whole = str(paths[0]) if len(paths) == 1 else [str(path) for path in paths]
        found = [_entry(whole, scan_stem(paths[0]), str(paths[0]))]
    return [{**item, **entry} for entry in found], seen


def _plain(path: Path) -> tuple[str, str, str]:
    return str(path), scan_stem(path), str(path)


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


def _is_text(value: Any) -> bool:
    return isinstance(value, str)

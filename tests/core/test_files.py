"""Files are whole or not there, tables and records are read as they were written."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.core.errors import DataError
from scripts.core.files import (
    ABANDONED_S,
    OutputError,
    digest_of,
    read_csv,
    read_record,
    remove_abandoned,
    replacing,
    stamp,
    write_bytes,
    write_csv,
    write_json,
)
from scripts.core.nifti import write_nifti
from scripts.core.processes import MACHINE


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_written_takes_its_place_at_the_end_and_not_on_an_error(tmp_path: Path, folder: bool) -> None:
    def write(place: Path, text: str) -> None:
        place.mkdir() if folder else None
        (place / "part" if folder else place).write_text(text)

    target = tmp_path / "result"
    content = target / "part" if folder else target
    for text in ("first", "second"):
        with replacing(target) as new:
            write(new, text)
            assert not content.exists() or content.read_text() == "first"
        assert content.read_text() == text
    with contextlib.suppress(KeyError), replacing(target) as new:
        write(new, "third")
        raise KeyError
    assert content.read_text() == "second"
    assert names(tmp_path) == {"result"}


def test_a_folder_killed_between_its_two_renames_is_put_back_first(tmp_path: Path) -> None:
    (tmp_path / ".result.former").mkdir()
    with pytest.raises(OutputError, match=r"result: expected room for .* bytes .*, got: Is a directory"):
        write_bytes(tmp_path / "result", b"a file does not take the place of a folder")
    assert names(tmp_path) == {"result"}


def test_only_what_nobody_writes_any_more_is_removed(tmp_path: Path) -> None:
    living = [f".a.{MACHINE}.{os.getppid()}.partial", ".a.elsewhere.1.partial", ".a.partial"]
    for name in (*living, f".a.{MACHINE}.{2**22 + 1}.partial", ".b.elsewhere.1.partial"):
        (tmp_path / name).touch()
    old = (tmp_path / living[1]).stat().st_mtime - ABANDONED_S - 60
    os.utime(tmp_path / ".b.elsewhere.1.partial", (old, old))
    remove_abandoned(tmp_path)
    assert names(tmp_path) == set(living)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "table.csv", [("name", "note"), ("a", 'x, "y"'), ("b", None), ("ü", 1.5)])
    rows = read_csv(path, ["note"])
    assert rows == [(n, {"name": a, "note": b}) for n, a, b in [(2, "a", 'x, "y"'), (3, "b", ""), (4, "ü", "1.5")]]


@pytest.mark.parametrize(
    "text", ["\ufeffname;note\n\n a ; x \n", "name\tnote\r\n \t\r\na\tx\r\n", 'name, note\n\na, "x"\n']
)
def test_tables_of_other_programs_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "table.csv").write_text(text, encoding="utf-8", newline="")
    assert read_csv(tmp_path / "table.csv") == [(3, {"name": "a", "note": "x"})]


def test_a_blank_first_line_and_a_line_break_in_a_value_are_read(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text('\n \nname;note\na;"x\ny"\n', encoding="utf-8")
    assert read_csv(tmp_path / "table.csv", ["note"]) == [(5, {"name": "a", "note": "x\ny"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name\na\n", "expected the columns name, note; missing: note; got name; name the columns in the first row"),
        (b"", "missing: name, note; got an empty file"),
        (b"name\n\xff\n", "expected a readable CSV file .UTF-8., got: "),
        (None, "expected a readable CSV file .UTF-8., got: .*No such file"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(DataError, match=f"table.csv: .*{message}"):
        read_csv(tmp_path / "table.csv", ["name", "note"])


def test_records_are_strict_json(tmp_path: Path) -> None:
    path = write_json(tmp_path / "record.json", {"name": "ü", "values": [1, None]})
    assert read_record(path) == {"name": "ü", "values": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    for text in ("[]", "{", ""):
        path.write_text(text)
        assert read_record(path) == {}
    assert read_record(tmp_path / "none.json") == {}


def test_stamps_and_digests_tell_contents_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    missing = stamp(path)
    path.write_text("x")
    os.utime(path, ns=(0, 7))
    assert (missing, stamp(path)) == ((str(path), -1, -1), (str(path), 1, 7))
    monkeypatch.chdir(tmp_path)
    assert stamp("a") == stamp(path)
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1}) != digest_of({"a": 1, "b": [3]})


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shear", [0.0, 0.3])
def test_a_volume_keeps_its_values_and_place(tmp_path: Path, suffix: str, shear: float) -> None:
    affine = np.array([[-0.8, 0, 0, 5], [0, 0.9, shear, -3], [0, 0, 2.0, 1], [0, 0, 0, 1]])
    values = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    path = write_nifti(tmp_path / f"scan{suffix}", values, affine, "a scan")
    content, image = path.read_bytes(), nib.load(path)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(image.dataobj), values)
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert [int(image.header[code]) for code in ("sform_code", "qform_code")] == [1, int(shear == 0.0)]
    assert write_nifti(path, values, affine, "a scan").read_bytes() == content
    assert suffix == ".nii" or content[4:8] == bytes(4)  # no time in the header of gzip
    assert names(tmp_path) == {path.name}

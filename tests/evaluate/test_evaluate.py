"""The command that scores any system's results: the challenge's cases, the docs' example, folds, and odd input."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from scripts.core.files import read_csv
from scripts.core.records import Detection
from scripts.evaluate.__main__ import main
from scripts.evaluate.handler import SaveEvaluation
from scripts.evaluate.tables import FINDING_COLUMNS, LUNA16_COLUMNS
from scripts.metrics import FrocMetric, ScanTruth, ScoredScan
from tests.real_data import real

ROOT = Path(__file__).resolve().parents[2]
DOCS = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The tables of the docs' example."""
    for name, text in re.findall(r"^`(\w+\.csv)`\n\n```csv\n(.*?)```$", DOCS, flags=re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def arguments(folder: Path, *more: str, results: Sequence[str] = ("results.csv",), resamples: int = 10) -> list[str]:
    return [
        *("luna16", "--results", *(str(folder / name) for name in results)),
        *("--annotations", str(folder / "annotations.csv"), "--series_uids", str(folder / "seriesuids.csv")),
        *("--excluded", str(folder / "annotations_excluded.csv"), "--output_dir", str(folder / "out")),
        *("--resamples", str(resamples), *more),
    ]


@pytest.fixture
def evaluate(files: Path) -> Evaluate:
    """Run the command on the example's tables, and read what it has written."""

    def run(*more: str, results: Sequence[str] = ("results.csv",)) -> dict[str, Any]:
        assert main(arguments(files, *more, results=results)) == 0
        record = json.loads((files / "out/froc.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
        assert isinstance(record, dict)
        return record

    return run


# --- the challenge's own readings -------------------------------------------------------------------------------------


def test_the_readings_are_those_of_the_challenge(tmp_path: Path) -> None:
    lists = real("luna16")
    expected = json.loads((lists / "froc_cases/expected.json").read_text(encoding="utf-8"))
    cases = [str(lists / f"froc_cases/{name}.csv") for name in expected]
    tables = {"annotations": "annotations", "excluded": "annotations_excluded", "series_uids": "seriesuids"}
    options = [part for option, name in tables.items() for part in (f"--{option}", str(lists / f"{name}.csv"))]
    began = time.process_time()
    assert main(["luna16", "--results", *cases, *options, "--output_dir", str(tmp_path)]) == 0
    assert time.process_time() - began < 10.0 * len(cases)
    record = json.loads((tmp_path / "froc.json").read_text(encoding="utf-8"))
    assert list(record) == list(expected)
    for name, wanted in expected.items():
        counts = {key for key in wanted if key not in ("sensitivity_at", "cpm")}
        assert {key: record[name][key] for key in counts} == {key: wanted[key] for key in counts}
        assert record[name]["sensitivity_at"] == pytest.approx(wanted["sensitivity_at"], abs=1e-6)
        assert record[name]["cpm"] == pytest.approx(wanted["cpm"], abs=1e-6)
        low, high = record[name]["interval"]["cpm"]
        assert low < record[name]["cpm"] < high


# --- the docs ---------------------------------------------------------------------------------------------------------


def test_the_example_of_the_docs(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(files, resamples=0)) == 0
    record = json.loads((files / "out/froc.json").read_text(encoding="utf-8"))["results"]
    assert record["cpm"] == pytest.approx(13 / 21)
    assert record["interval"] is None  # without resamples
    assert list(record["sensitivity_at"].values()) == pytest.approx([1 / 3, *[2 / 3] * 6])
    counts = {"true_positives": 2, "false_negatives": 1, "false_positives": 3, "nodules": 3, "scans": 4}
    counts |= {"ignored_on_excluded": 1, "ignored_double": 1, "candidates_scored": 7}
    counts |= {"scans_without_candidates": 1, "candidates_of_unknown_scans": 1, "candidates_over_limit": 0}
    assert {key: record[key] for key in counts} == counts
    assert record["listed"] == {"scans_without_candidates": ["d"], "candidates_of_unknown_scans": {"e": 1}}
    documented = re.findall(r"^```text\n(.*?)```$", DOCS, flags=re.MULTILINE | re.DOTALL)[0]
    assert capsys.readouterr().out == documented


def test_the_picture_of_the_docs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands as the docs give them, elsewhere; the table below them is what they print."""
    for line in re.findall(r"^python -m scripts\.evaluate (.*outputs/example.*)$", DOCS, flags=re.MULTILINE):
        assert main(line.replace("outputs/example", str(tmp_path)).split()) == 0
    documented = re.findall(r"^```text\n(.*?)```$", DOCS, flags=re.MULTILINE | re.DOTALL)[1]
    assert capsys.readouterr().out == documented
    drawn, shown = (matplotlib.image.imread(p) for p in (tmp_path / "scores/froc.png", ROOT / "docs/images/froc.png"))
    assert drawn.shape == shown.shape


# --- what is written --------------------------------------------------------------------------------------------------


def test_several_systems_in_any_spelling_of_a_list(files: Path, evaluate: Evaluate) -> None:
    rows = (files / "results.csv").read_text(encoding="utf-8").splitlines()
    (files / "other.csv").write_text("\n".join([rows[0], *rows[3:]]), encoding="utf-8")
    record = evaluate(results=("results.csv", "other.csv"))
    assert list(record) == ["results", "other"]
    assert record["other"]["true_positives"] == 1
    assert evaluate("--results", str(files / "other.csv")) == record
    both = f"['{files / 'results.csv'}', '{files / 'other.csv'}']"
    assert main(["luna16", "--results", both, *arguments(files)[3:]]) == 0
    assert json.loads((files / "out/froc.json").read_text(encoding="utf-8")) == record
    curves = [row for _, row in read_csv(files / "out/froc.csv")]
    points = [
        (float(r["false_positives_per_scan"]), float(r["sensitivity"])) for r in curves if r["system"] == "results"
    ]
    np.testing.assert_allclose(
        points, [(0, 0), (0, 1 / 3), (1 / 4, 1 / 3), (1 / 4, 2 / 3), (2 / 4, 2 / 3), (3 / 4, 2 / 3)], atol=1e-8
    )
    assert [r["threshold"] for r in curves[:3]] == ["", "0.9", "0.8"]
    assert not list((files / "out").glob("*partial*"))


def test_equal_file_names_stay_apart(files: Path, evaluate: Evaluate) -> None:
    (files / "second").mkdir()
    (files / "second/results.csv").write_bytes((files / "results.csv").read_bytes())
    assert list(evaluate("--results", str(files / "second/results.csv"))) == ["results", "results-2"]


Edit = Callable[[Path], Any]


def edited(name: str, change: Callable[[str], str], encoding: str = "utf-8") -> Edit:
    """A change of one of the tables."""

    def edit(files: Path) -> None:
        path = files / f"{name}.csv"
        path.write_text(change(path.read_text(encoding="utf-8")), encoding=encoding)

    return edit


def reversed_columns(text: str) -> str:
    """Other order, another column, spaces and blank lines."""
    lines = [",".join(["note", *line.split(",")][::-1]) for line in text.splitlines()]
    return "\r\n\r\n".join(line.replace("coordZ", " coordZ ") for line in lines) + "\r\n"


def reversed_rows(text: str) -> str:
    header, *rows = text.splitlines()
    return "\n".join([header, *rows[::-1]])


def beyond_1(text: str) -> str:
    return re.sub(r",(0\.\d+)$", lambda m: f",{float(m[1]) * 9 - 4}", text, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edited("results", reversed_columns, "utf-8-sig"), ""),
        (edited("results", reversed_rows), ""),
        (edited("annotations", reversed_rows), ""),
        (edited("annotations_excluded", reversed_rows), ""),
        (edited("seriesuids", lambda _: "d\nb\nc\na\n"), ""),
        (edited("seriesuids", lambda _: "seriesuid\na\nb\nb\nc\nd\na\n"), "2 rows repeat a series"),
        (edited("results", beyond_1), "7 probabilities outside 0 to 1"),
        (edited("seriesuids", lambda _: "SeriesUID\na\nb\nc\nd\n"), ""),
        (edited("annotations", lambda text: f"{text}f,0,0,0,8\n"), "1 findings belong to series that are not in"),
        (edited("annotations_excluded", lambda text: f"{text}f,0,0,0,8\n"), "1 findings belong to series that are not"),
        (lambda files: None, "results: 1 scans without candidates: d"),
        (lambda files: None, "results: 1 candidates of 1 scans that are not in the list, not counted: e"),
    ],
)
def test_what_does_not_count_is_at_most_said(
    edit: Edit, said: str, files: Path, evaluate: Evaluate, caplog: pytest.LogCaptureFixture
) -> None:
    expected = evaluate()
    caplog.clear()
    edit(files)
    assert evaluate() == expected
    assert said in caplog.text


# --- folds ------------------------------------------------------------------------------------------------------------


def fold_csv(files: Path) -> list[str]:
    (files / "folds.csv").write_text("fold,seriesuid\n0,a\n1,b\n1,c\n0,d\n", encoding="utf-8")
    return [str(files / "folds.csv")]


def fold_datalists(files: Path) -> list[str]:
    for n, (ours, theirs) in enumerate((("ad", "bc"), ("bc", "ad"))):
        items = [
            [
                {"image": f"sub.set/{uid}{ending}", "box": []} | ({"name": uid, "image": "dicom"} if n else {})
                for uid in part
            ]
            for part, ending in ((ours, ".nii.gz"), (theirs, ".mhd"))
        ]
        (files / f"fold{n}.json").write_text(
            json.dumps({"validation": items[0], "training": items[1]}), encoding="utf-8"
        )
    return [str(files / "fold0.json"), str(files / "fold1.json")]


def fold_folder(files: Path) -> list[str]:
    for n, part in enumerate(("ad", "bc")):
        (files / f"scans/subset{n}").mkdir(parents=True)
        for uid in part:
            (files / f"scans/subset{n}/{uid}.mhd").touch()
            (files / f"scans/subset{n}/{uid}.raw").touch()
    return [str(files / "scans")]


@pytest.mark.parametrize("form", [fold_csv, fold_datalists, fold_folder])
def test_each_fold_and_all_together(
    form: Callable[[Path], list[str]], files: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluate()["results"]
    record = evaluate("--folds", *form(files))["results"]
    first, second = record.pop("folds").values()
    assert record == whole
    counts = ("scans", "nodules", "true_positives", "false_positives", "scans_without_candidates")
    assert [first[c] for c in counts] == [2, 2, 2, 1, 1]
    assert [second[c] for c in counts] == [2, 1, 0, 2, 0]
    assert (first["cpm"], second["cpm"]) == (1.0, 0.0)  # both found before the false one
    assert first["candidates_of_unknown_scans"] == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4


def test_scans_that_folds_and_list_do_not_share_are_counted(
    files: Path, evaluate: Evaluate, caplog: pytest.LogCaptureFixture
) -> None:
    (files / "folds.csv").write_text("seriesuid,fold\na,0\nx,0\nb,1\n", encoding="utf-8")
    record = evaluate("--folds", str(files / "folds.csv"))["results"]
    assert record["scans"] == 4
    assert {name: fold["scans"] for name, fold in record["folds"].items()} == {"0": 1, "1": 1}
    assert "1 series of the folds are not in" in caplog.text
    assert "2 scans of" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("f.csv", "seriesuid\na\n", "missing: fold"),
        ("f.csv", "seriesuid,fold\na,\n", "row 2: expected series and fold"),
        ("f.csv", "seriesuid,fold\na,0\na,1\n", "series a: expected it in one fold, got it in 0 and 1"),
        ("f.csv", "seriesuid,fold\n", "expected scans in every fold"),
        ("f.json", "{}", "a datalist with a list 'validation'"),
        ("f.json", "[", "a datalist with a list 'validation'"),
        ("f.json", '{"validation": [3]}', "a datalist with a list 'validation'"),
        ("f.json", '{"validation": []}', "expected scans in every fold, got none in f; give --folds a CSV"),
    ],
)
def test_folds_that_cannot_be_used(
    name: str, text: str, message: str, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (files / name).write_text(text, encoding="utf-8")
    assert main(arguments(files, "--folds", str(files / name))) == 1
    assert message in caplog.text


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("subset", "expected scans in every fold, got none in subset"),
        ("", "expected scans in every fold, got none in it"),
        ("none.json", "none.json: expected a datalist"),
        ("none.csv", "none.csv: expected a readable CSV file"),
    ],
)
def test_folds_that_are_not_there(name: str, message: str, files: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = files / "empty"
    folder.mkdir()
    if name == "subset":
        (folder / name).mkdir()
    path = folder if name in ("", "subset") else folder / name
    assert main(arguments(files, "--folds", str(path))) == 1
    assert message in caplog.text


# --- odd input --------------------------------------------------------------------------------------------------------


def appended(row: str) -> Edit:
    return edited("results", lambda text: text + row + "\n")


REFUSED: list[tuple[Edit, str]] = [
    *(
        (edited(table, lambda text, name=name: text.replace(name, "other")), f"{table}.csv: expected .*missing: {name}")
        for table, columns in (("results", LUNA16_COLUMNS), ("annotations_excluded", FINDING_COLUMNS))
        for name in (columns[1], columns[4])
    ),
    *(
        (appended(row), rf"results\.csv, row 10, {column}: expected a finite number, got {got}.*or remove the row")
        for value in ("high", "nan", "inf", "-inf", "0,9", "")
        for got in (repr(value) if value else "nothing",)
        for row, column in ((f'a,1,"{value}",3,0.5', "coordY"), (f'a,1,2,3,"{value}"', "probability"))
    ),
    (appended("a,1,2,3"), "row 10, probability: expected a finite number, got nothing"),
    (appended(",1,2,3,0.5"), "row 10: expected a series UID"),
    *(
        (lambda files, name=name: (files / name).unlink(), f"{name}: expected")
        for name in ("results.csv", "annotations.csv", "annotations_excluded.csv", "seriesuids.csv")
    ),
    *((edited(name, lambda _: ""), "an empty file") for name in ("annotations", "annotations_excluded", "seriesuids")),
    (
        lambda files: (files / "results.csv").write_bytes(b"\x89PNG\xff"),
        r"results\.csv: expected a readable CSV file \(UTF-8\)",
    ),
]


@pytest.mark.parametrize(("edit", "message"), REFUSED)
def test_a_table_that_cannot_be_used_is_refused_and_former_scores_stay(
    edit: Edit, message: str, files: Path, evaluate: Evaluate, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate()
    before = {p.name: p.read_bytes() for p in (files / "out").iterdir()}
    edit(files)
    assert main(arguments(files)) == 1
    (said,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert re.search(message, said)
    assert {p.name: p.read_bytes() for p in (files / "out").iterdir()} == before


@pytest.mark.parametrize("text", ["", "\n\n", ",".join(LUNA16_COLUMNS) + "\n"])
def test_no_candidates_is_0_and_said(
    text: str, files: Path, evaluate: Evaluate, caplog: pytest.LogCaptureFixture
) -> None:
    (files / "results.csv").write_text(text, encoding="utf-8")
    record = evaluate()["results"]
    assert record["cpm"] == 0.0
    assert set(record["sensitivity_at"].values()) == {0.0}
    assert (record["false_negatives"], record["scans_without_candidates"]) == (3, 4)
    assert "no candidates, so every sensitivity and the CPM are 0" in caplog.text


def test_no_nodules_is_undefined_and_said(
    files: Path, evaluate: Evaluate, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "annotations.csv").write_text(",".join(FINDING_COLUMNS) + "\n", encoding="utf-8")
    record = evaluate("--folds", *fold_csv(files))["results"]
    assert record["cpm"] is None
    assert set(record["sensitivity_at"].values()) == {None}
    assert "undefined" in record["note"]
    assert record["false_positives"] == 6
    assert "undefined" in capsys.readouterr().out
    assert "there is no nodule to find" in caplog.text


def test_without_excluded_findings_their_candidates_are_false_and_it_is_said(
    files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = arguments(files)
    place = plain.index("--excluded")
    assert main(plain[:place] + plain[place + 2 :]) == 0
    record = json.loads((files / "out/froc.json").read_text(encoding="utf-8"))["results"]
    assert (record["false_positives"], record["ignored_on_excluded"]) == (4, 0)
    assert "no --excluded" in caplog.text


def test_an_output_that_cannot_be_written_is_refused(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    (files / "out").write_text("in the way", encoding="utf-8")
    assert main(arguments(files)) == 1
    assert "expected a folder that can be written to" in caplog.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pool", "--results", "{files}/results.csv"], "--pool: expected every series in one results file, got"),
        (["--resamples", "-1"], "whole numbers of at least 0, got -1"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    more: list[str], message: str, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = arguments(files, *(word.format(files=files) for word in more))
    if "--resamples" in more:
        del words[words.index("--resamples") : words.index("--resamples") + 2]
    assert main(words) == 1
    assert message in caplog.text


# --- cross-validation; its whole way is in tests/end_to_end/test_luna16.py -------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--datalists", "none.json"], "expected files, found none at"),
        (["--datalists", "a/fold.json", "b/fold.json"], "expected a different file name for each fold"),
        (["--datalists", "{list}", "--settings", "max_epochs"], "expected NAME=VALUE"),
        (["--datalists", "{list}", "--settings", "output_dir=x"], "other than datalists, output_dir"),
    ],
)
def test_a_wrong_cross_validation_is_refused_before_it_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: list[str], message: str
) -> None:
    (tmp_path / "fold.json").write_text("{}")
    arguments = [option.format(list=tmp_path / "fold.json") for option in options]
    assert main(["cross_validate", *arguments, "--output_dir", str(tmp_path / "out")]) == 1
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_fold_that_fails_ends_the_cross_validation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def fails_at_the_third(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(words)
        return subprocess.CompletedProcess(words, int(len(calls) == 3))

    monkeypatch.setattr(subprocess, "run", fails_at_the_third)
    lists = [tmp_path / f"fold{n}.json" for n in range(2)]
    for path in lists:
        path.write_text("{}")
    options = ["--output_dir", str(tmp_path / "out"), "--settings", "max_epochs=3"]
    assert main(["cross_validate", "--datalists", *map(str, lists), *options]) == 1
    assert f"{lists[1]}: expected the training of this fold to succeed, got exit status 1" in caplog.text
    assert [words[4] for words in calls] == ["training", "evaluating", "training"]
    for words in calls:
        named = dict(zip(words[5::2], words[6::2], strict=True))
        assert named["--max_epochs"] == "3"
        assert named["--datalists"] in (str([str(path)]) for path in lists)


# --- in the graph -----------------------------------------------------------------------------------------------------


def test_what_the_graph_scored_gives_the_same_numbers_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    metric = FrocMetric()
    for n in range(20):
        centres = rng.uniform(-100, 100, (n % 4, 3))
        kinds = np.arange(n % 4) < 2
        found = [Detection(tuple((c + rng.normal(0, 2, 3)).tolist()), 5.0, float(rng.random())) for c in centres]
        found += [Detection(tuple(rng.uniform(-100, 100, 3).tolist()), 5.0, float(rng.random())) for _ in range(n % 3)]
        metric.update([ScoredScan(tuple(found), ScanTruth(centres, rng.uniform(4, 20, n % 4), kinds, f"scan {n}"))])
    with pytest.raises(ValueError, match="has been computed"):
        SaveEvaluation(metric, str(tmp_path / "none")).write()
    cpm = metric.compute()
    SaveEvaluation(metric, str(tmp_path / "graph"), resamples=50).write()
    tables = {"results": "predictions", "annotations": "annotations", "excluded": "annotations_excluded"}
    tables["series_uids"] = "seriesuids"
    options = [part for option, name in tables.items() for part in (f"--{option}", str(tmp_path / f"graph/{name}.csv"))]
    assert main(["luna16", *options, "--output_dir", str(tmp_path / "command"), "--resamples", "50"]) == 0
    record, again = (
        json.loads((tmp_path / f"{f}/froc.json").read_text(encoding="utf-8")) for f in ("graph", "command")
    )
    assert record == again
    assert record["predictions"]["cpm"] == pytest.approx(cpm, abs=1e-9)
    assert 0.0 < cpm < 1.0
    assert record["predictions"]["scans_without_candidates"] > 0

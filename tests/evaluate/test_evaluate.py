"""The command that scores any system's results: the challenge's cases, the docs' example, folds, and odd input."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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
PRINTED = re.findall(r"^```text\n(.*?)```$", DOCS, flags=re.MULTILINE | re.DOTALL)

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The tables of the docs' example."""
    for name, text in re.findall(r"^`(\w+\.csv)`\n\n```csv\n(.*?)```$", DOCS, flags=re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def arguments(folder: Path, *more: str, results: Sequence[str] = ("results.csv",), **changes: Any) -> list[str]:
    """Of the command on the tables of a folder; an option that is ``None`` is left out."""
    tables = {"annotations": "annotations.csv", "series_uids": "seriesuids.csv", "excluded": "annotations_excluded.csv"}
    options = {option: folder / name for option, name in tables.items()}
    options |= {"output_dir": folder / "out", "resamples": 10, **changes}
    words = [(f"--{option}", str(value)) for option, value in options.items() if value is not None]
    return ["luna16", "--results", *(str(folder / name) for name in results), *chain(*words), *more]


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "froc.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.fixture
def evaluate(files: Path) -> Evaluate:
    """Run the command on the example's tables, and read what it has written."""

    def run(*more: str, **changes: Any) -> dict[str, Any]:
        assert main(arguments(files, *more, **changes)) == 0
        return record_of(files / "out")

    return run


# --- the challenge's own readings -------------------------------------------------------------------------------------


def test_the_readings_are_those_of_the_challenge(tmp_path: Path) -> None:
    lists = real("luna16")
    expected = json.loads((lists / "froc_cases/expected.json").read_text(encoding="utf-8"))
    cases = [f"froc_cases/{name}.csv" for name in expected]
    began = time.process_time()
    assert main(arguments(lists, results=cases, output_dir=tmp_path, resamples=None)) == 0
    assert time.process_time() - began < 10.0 * len(cases)
    record = record_of(tmp_path)
    assert list(record) == list(expected)
    for name, wanted in expected.items():
        low, high = record[name]["interval"]["cpm"]
        assert low < record[name]["cpm"] < high
        for reading in ("sensitivity_at", "cpm"):
            assert record[name].pop(reading) == pytest.approx(wanted.pop(reading), abs=1e-6)
        assert {count: record[name][count] for count in wanted} == wanted


# --- the docs ---------------------------------------------------------------------------------------------------------


def test_the_example_of_the_docs(evaluate: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    record = evaluate(resamples=0)["results"]
    assert record["cpm"] == pytest.approx(13 / 21)
    assert list(record["sensitivity_at"].values()) == pytest.approx([1 / 3, *[2 / 3] * 6])
    expected = {
        **{"true_positives": 2, "false_negatives": 1, "false_positives": 3, "nodules": 3, "scans": 4},
        **{"ignored_on_excluded": 1, "ignored_double": 1, "candidates_scored": 7},
        **{"scans_without_candidates": 1, "candidates_of_unknown_scans": 1, "candidates_over_limit": 0},
        "listed": {"scans_without_candidates": ["d"], "candidates_of_unknown_scans": {"e": 1}},
        "interval": None,  # without resamples
    }
    assert {key: record[key] for key in expected} == expected
    assert capsys.readouterr().out == PRINTED[0]


def test_the_picture_of_the_docs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands as the docs give them, elsewhere; the table below them is what they print."""
    for line in re.findall(r"^python -m scripts\.evaluate (.*outputs/example.*)$", DOCS, flags=re.MULTILINE):
        assert main(line.replace("outputs/example", str(tmp_path)).split()) == 0
    assert capsys.readouterr().out == PRINTED[1]
    drawn, shown = (matplotlib.image.imread(p) for p in (tmp_path / "scores/froc.png", ROOT / "docs/images/froc.png"))
    assert drawn.shape == shown.shape


# --- what is written --------------------------------------------------------------------------------------------------


def test_several_systems_in_any_spelling_of_a_list(files: Path, evaluate: Evaluate) -> None:
    rows = (files / "results.csv").read_text(encoding="utf-8").splitlines()
    (files / "other.csv").write_text("\n".join([rows[0], *rows[3:]]), encoding="utf-8")
    record = evaluate(results=("results.csv", "other.csv"))
    assert {name: system["true_positives"] for name, system in record.items()} == {"results": 2, "other": 1}
    assert evaluate("--results", str(files / "other.csv")) == record
    both = f"['{files / 'results.csv'}', '{files / 'other.csv'}']"
    assert main(["luna16", "--results", both, *arguments(files)[3:]]) == 0
    assert record_of(files / "out") == record
    curve = [row for _, row in read_csv(files / "out/froc.csv") if row["system"] == "results"]
    points = [(float(row["false_positives_per_scan"]), float(row["sensitivity"])) for row in curve]
    expected = [(0, 0), (0, 1 / 3), (1 / 4, 1 / 3), (1 / 4, 2 / 3), (2 / 4, 2 / 3), (3 / 4, 2 / 3)]
    np.testing.assert_allclose(points, expected, atol=1e-8)
    assert [row["threshold"] for row in curve[:3]] == ["", "0.9", "0.8"]
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
    """The scans of the first are told by their files, those of the second by their names."""
    first = {
        "validation": [{"image": f"sub.set/{uid}.nii.gz", "box": []} for uid in "ad"],
        "training": [{"image": f"sub.set/{uid}.mhd", "box": []} for uid in "bc"],
    }
    second = {
        "validation": [{"image": "dicom", "box": [], "name": uid} for uid in "bc"],
        "training": [{"image": "dicom", "box": [], "name": uid} for uid in "ad"],
    }
    for n, lists in enumerate((first, second)):
        (files / f"fold{n}.json").write_text(json.dumps(lists), encoding="utf-8")
    return [str(files / "fold0.json"), str(files / "fold1.json")]


def fold_folder(files: Path) -> list[str]:
    for name in ("subset0/a", "subset0/d", "subset1/b", "subset1/c"):
        for ending in (".mhd", ".raw"):
            path = files / "scans" / f"{name}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return [str(files / "scans")]


@pytest.mark.parametrize("form", [fold_csv, fold_datalists, fold_folder])
def test_each_fold_and_all_together(
    form: Callable[[Path], list[str]], files: Path, evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluate()["results"]
    record = evaluate("--folds", *form(files))["results"]
    folds = record.pop("folds")
    assert record == whole
    counts = ("scans", "nodules", "true_positives", "false_positives", "scans_without_candidates")
    read = [[fold[name] for name in (*counts, "candidates_of_unknown_scans", "cpm")] for fold in folds.values()]
    # In the first both nodules are found before the false finding.
    assert read == [[2, 2, 2, 1, 1, 0, 1.0], [2, 1, 0, 2, 0, 0, 0.0]]
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4


def test_scans_that_folds_and_list_do_not_share_are_counted(
    files: Path, evaluate: Evaluate, caplog: pytest.LogCaptureFixture
) -> None:
    (files / "folds.csv").write_text("seriesuid,fold\na,0\nx,0\nb,1\n", encoding="utf-8")
    record = evaluate("--folds", str(files / "folds.csv"))["results"]
    scans = {name: one["scans"] for name, one in {"all": record, **record["folds"]}.items()}
    assert scans == {"all": 4, "0": 1, "1": 1}
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
        ("folder", None, "expected scans in every fold, got none in subset"),
        ("folder/subset", None, "expected scans in every fold, got none in it"),
        ("none.json", None, "none.json: expected a datalist"),
        ("none.csv", None, "none.csv: expected a readable CSV file"),
    ],
)
def test_folds_that_cannot_be_used(
    name: str, text: str | None, message: str, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (files / "folder/subset").mkdir(parents=True)
    if text is not None:
        (files / name).write_text(text, encoding="utf-8")
    assert main(arguments(files, "--folds", str(files / name))) == 1
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


NOTHING_FOUND = {"cpm": 0.0, "sensitivities": {0.0}, "false_negatives": 3, "scans_without_candidates": 4}
NOTHING_TO_FIND = {"cpm": None, "sensitivities": {None}, "false_positives": 6}


@pytest.mark.parametrize(
    ("edit", "changes", "expected", "said", "printed"),
    [
        *(
            (edited("results", lambda _, text=text: text), {}, NOTHING_FOUND, "every sensitivity and the CPM are 0", "")
            for text in ("", "\n\n", ",".join(LUNA16_COLUMNS) + "\n")
        ),
        (
            edited("annotations", lambda _: ",".join(FINDING_COLUMNS) + "\n"),
            *({}, NOTHING_TO_FIND, "there is no nodule to find", "undefined"),
        ),
        # Candidates on excluded findings are false without them.
        (lambda files: None, {"excluded": None}, {"false_positives": 4, "ignored_on_excluded": 0}, "no --excluded", ""),
    ],
)
def test_no_candidates_no_nodules_and_no_excluded_findings_are_scored_and_said(
    edit: Edit,
    changes: dict[str, Any],
    expected: dict[str, Any],
    said: str,
    printed: str,
    files: Path,
    evaluate: Evaluate,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    edit(files)
    record = evaluate("--folds", *fold_csv(files), **changes)["results"]
    record["sensitivities"] = set(record["sensitivity_at"].values())
    assert {key: record[key] for key in expected} == expected
    assert ("undefined" in record.get("note", "")) == bool(printed)
    assert said in caplog.text
    assert printed in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        ("--pool --results {files}/results.csv", {}, "--pool: expected every series in one results file, got"),
        ("", {"resamples": -1}, "whole numbers of at least 0, got -1"),
        ("--output_dir {files}/results.csv", {"output_dir": None}, "expected a folder that can be written to"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    more: str, changes: dict[str, Any], message: str, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(arguments(files, *more.format(files=files).split(), **changes)) == 1
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
    run = Mock(side_effect=[subprocess.CompletedProcess([], status) for status in (0, 0, 1)])
    monkeypatch.setattr(subprocess, "run", run)
    lists = [str(tmp_path / f"fold{n}.json") for n in range(2)]
    for path in lists:
        Path(path).write_text("{}")
    options = ["--output_dir", str(tmp_path / "out"), "--settings", "max_epochs=3"]
    assert main(["cross_validate", "--datalists", *lists, *options]) == 1
    assert f"{lists[1]}: expected the training of this fold to succeed, got exit status 1" in caplog.text
    commands = [call.args[0] for call in run.call_args_list]
    assert [words[4] for words in commands] == ["training", "evaluating", "training"]
    for words in commands:
        named = dict(zip(words[5::2], words[6::2], strict=True))
        assert named["--max_epochs"] == "3"
        assert named["--datalists"] in (str([path]) for path in lists)


# --- in the graph -----------------------------------------------------------------------------------------------------


def test_what_the_graph_scored_gives_the_same_numbers_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    metric = FrocMetric()
    for n in range(20):
        centres = rng.uniform(-100, 100, (n % 4, 3))
        kinds = np.arange(n % 4) < 2
        places = [*(centre + rng.normal(0, 2, 3) for centre in centres), *rng.uniform(-100, 100, (n % 3, 3))]
        found = tuple(Detection(tuple(place.tolist()), 5.0, float(rng.random())) for place in places)
        metric.update([ScoredScan(found, ScanTruth(centres, rng.uniform(4, 20, n % 4), kinds, f"scan {n}"))])
    graph, command = tmp_path / "graph", tmp_path / "command"
    with pytest.raises(ValueError, match="has been computed"):
        SaveEvaluation(metric, str(graph)).write()
    cpm = metric.compute()
    SaveEvaluation(metric, str(graph), resamples=50).write()
    assert main(arguments(graph, results=["predictions.csv"], output_dir=command, resamples=50)) == 0
    record = record_of(graph)
    assert record == record_of(command)
    assert 0.0 < cpm < 1.0
    assert record["predictions"]["cpm"] == pytest.approx(cpm, abs=1e-9)
    assert record["predictions"]["scans_without_candidates"] > 0

"""The benchmark measures the graph as it is: each moment counted once, shares that sum up, counts of the docs."""

from __future__ import annotations

import json
import logging
import math
import re
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts.core.commands import read_options
from scripts.core.errors import DataError
from tools.benchmark import __main__ as command
from tools.benchmark import ceilings
from tools.benchmark import search as searching
from tools.benchmark.__main__ import benchmark, main, time_command
from tools.benchmark.ceilings import product_rate, published_tiles, seconds_of
from tools.benchmark.page import PARTS, filled_page, scan_tables
from tools.benchmark.search import FILES, NETWORK, ROOT, STAGES, TILES, Searched, median_search, search
from tools.benchmark.stopwatch import Stage, Stopwatch, Timed
from tools.network.describe import END

PAGE, NETWORKS_PAGE = (ROOT / "docs" / name for name in ("performance.md", "network.md"))
INFERENCE = str(ROOT / "configs" / "inference.json")
TINY = {
    "_target_": "scripts.network.CompactNet",
    "_requires_": "@scripts_path",
    **{"widths": [8, 8, 8, 8], "blocks": [1, 1, 1, 1], "layers": 1, "dim": 8, "heads": 2, "points": 2},
    "feed_forward": 16,
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lays a narrow network with random weights and small tiles over the graph."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.json"
    settings = {"network_def": TINY, "checkpoint": "", "tile_size": [32, 32, 32], "tile_overlap": 0.5}
    path.write_text(json.dumps({**settings, "candidate_threshold": 0.499}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def scan(small_data: Path) -> str:
    return str(small_data / "images" / "phantom_0003.nii.gz")


# --- stopwatch --------------------------------------------------------------------------------------------------------


def test_each_moment_belongs_to_the_innermost_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open inside a stage, as errors leave it, ends with that stage."""
    now = [100.0]  # moves only when told to, while four threads are busy
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.process_time", lambda: 4.0 * now[0])
    watch = Stopwatch("cpu")
    now[0] += 5.0  # before anything is open
    with watch.stage("whole"):
        now[0] += 1.0
        for _ in range(2):
            with watch.stage("part"):
                now[0] += 0.25
        now[0] += 2.0
        watch.begin("never ended")
        now[0] += 0.125
    now[0] += 8.0  # nothing is open any more
    with watch.stage("next"):
        now[0] += 4.0
    seconds = {name: one.seconds for name, one in watch.stages.items()}
    assert seconds == {"whole": 3.0, "part": 0.5, "never ended": 0.125, "next": 4.0}
    assert {name: one.cpu_seconds for name, one in watch.stages.items()} == {n: 4.0 * s for n, s in seconds.items()}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a peak begin again")
def test_a_peak_belongs_to_the_stage_that_made_it() -> None:
    watch = Stopwatch("cpu")
    for name, size in (("before", 1), ("large", 300_000_000), ("after", 1)):
        with watch.stage(name):
            np.ones(size, dtype=np.uint8)
    peaks = {name: one.peak_bytes for name, one in watch.stages.items()}
    assert peaks["large"] > max(peaks["before"], peaks["after"]) + 250_000_000


def test_what_is_timed_can_be_read_through() -> None:
    watch = Stopwatch("cpu")
    timed = Timed(np.poly1d([2.0, 1.0]), "line", watch)
    assert (timed(3.0), timed.order, list(watch.stages)) == (7.0, 1, ["line"])


# --- ceilings ---------------------------------------------------------------------------------------------------------


def test_the_rate_of_products_is_the_best_of_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a GPU multiplies float32 as its convolutions do, and afterwards as before."""
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, during = matrices.fp32_precision, set()

    def seconds(work: Callable[..., torch.Tensor], left: torch.Tensor, right: torch.Tensor) -> float:
        during.add(matrices.fp32_precision)
        return len(work(left, right)) / 32

    monkeypatch.setattr(ceilings, "MATRIX_EDGES", {"cpu": (16, 8)})
    monkeypatch.setattr(ceilings, "seconds_of", seconds)
    assert product_rate(torch.device("cpu"), "float32") == 2 * 16**3 / 0.5
    assert during == {convolutions.fp32_precision} != {before}
    assert matrices.fp32_precision == before


def test_seconds_are_those_of_one_call() -> None:
    calls = []
    assert seconds_of(lambda wait: calls.append(time.sleep(wait)), 0.02) == pytest.approx(0.02, abs=0.015)
    assert len(calls) > 3


@pytest.mark.parametrize(
    ("shape", "mm", "tiles"),
    [
        ((512, 512, 250), (0.6, 0.6, 1.2), 4 * 4 * 4),
        ((480, 480, 96), (0.6, 0.6, 1.0), 3 * 3),
        ((1, 1, 1), (1, 1, 1), 1),
    ],
)
def test_published_tiles_cover_the_field_of_view(shape: tuple, mm: tuple, tiles: int) -> None:
    assert published_tiles(Searched(shape=shape, spacing_mm=mm)) == tiles


def test_seconds_after_reading() -> None:
    searched = Searched({FILES: Stage(1.0), "read": Stage(2.0), NETWORK: Stage(4.0), "decode": Stage(3.0)})
    assert (searched.seconds, searched.seconds_after_reading) == (10.0, 7.0)
    searched.stages[TILES] = Stage(0.5)
    (*_, text) = scan_tables({}, {}, {"float32": replace(searched, litres=1.0)})
    assert "After reading 7.50 s, of which all but the network and its tiles take 3.00 s" in text


def test_the_first_search_warms_up_and_the_others_give_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter(
        Searched({"read": Stage(*took)}) for took in ((90.0, 90.0, 1), (3.0, 8.0, 5), (1.0, 9.0, 7), (2.0, 7.0, 6))
    )
    monkeypatch.setattr(searching, "search", lambda *_, **__: next(runs))
    assert median_search([], 3).stages == {"read": Stage(2.0, 8.0, 7)}


# --- the graph --------------------------------------------------------------------------------------------------------


def test_every_component_of_the_graph_is_a_stage_and_the_scan_is_described_as_it_is(tiny: str, scan: str) -> None:
    searched = search([INFERENCE, tiny], input=scan, device="cpu", precision="float32")
    graph = json.loads(Path(INFERENCE).read_text(encoding="utf-8"))
    steps = [one for part in ("preprocessing", "postprocessing") for one in graph[part]["transforms"]]
    components = [graph[one[1:]] if isinstance(one, str) else one for one in steps]
    classes = [one["_target_"].split(".")[-1] for one in components]
    named = {STAGES.get(name, name) for name in classes} - {"scan_to_grid"}
    named |= {"find lungs, crop", "orient", "resample"}  # what it is made of
    files = {name for name in searched.stages if name.startswith("write ")}
    assert named | files | {"engine", FILES, NETWORK, TILES} == set(searched.stages)
    assert len(files) == len(graph["writer"]["writers"])
    assert searched.lungs_found
    assert searched.litres * 1e6 < searched.tile_voxels <= searched.tiles * 32**3  # at 1 mm
    body_litres = math.prod(searched.shape) * math.prod(searched.spacing_mm) / 1e6
    assert 0.1 < searched.litres / body_litres < 0.5


def test_a_refused_scan_ends_it(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="got 0 and 1 refused"):
        search([INFERENCE, tiny], input=str(tmp_path / "broken.nii.gz"), device="cpu")
    assert "broken" in capsys.readouterr().err


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_whole_command(tiny: str, scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds: small matrices, the published tiles of a smaller edge, commands that are not run."""
    for module, name, value in (
        (ceilings, "MATRIX_EDGES", {"cpu": (256,)}),
        (ceilings, "TILE", 16),
        (ceilings, "TILE_MARGIN", 8),
        (command, "time_command", lambda _, count, __: 10.0 + 2.0 * count),
    ):
        monkeypatch.setattr(module, name, value)
    page = tmp_path / "performance.md"
    shutil.copy(PAGE, page)
    options = ["--config_file", INFERENCE, tiny, "--input", scan, "--device", "cpu", "--repeats", "1", "--scans"]
    assert main([*options, "--precision", "float32", "--markdown", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "no GPU was at hand" in text
    tables = tables_of(text.split(PARTS["cpu"])[1].split(END)[0])
    *stages, whole = tables["Stage"]
    assert sum(float(row[1]) for row in stages) == pytest.approx(float(whole[1]), abs=0.02)
    assert sum(float(row[3][:-1]) for row in stages) == pytest.approx(100.0, abs=1.5)
    paper, own = tables["Network"]
    assert (paper[0], own[0]) == ("paper, float32", "this network, float32")
    counted = re.findall(r"\| \*\*all\*\* \|.*\| \*\*([\d.]+)\*\* \|$", NETWORKS_PAGE.read_text(), re.MULTILINE)
    assert counted == [paper[2]]
    ratios = {row[0].split(":")[0]: row[1:] for row in tables["What"]}
    assert ratios["paper, float32"][1] == "1.0"
    seconds, faster = map(float, ratios["this search, float32, network"])
    assert faster == pytest.approx(float(ratios["paper, float32"][0]) / seconds, rel=0.05, abs=0.06)
    assert [" ".join(row) for row in tables["scans"]] == ["1 12.0 12.00", "2 14.0 7.00", "4 18.0 4.50", "8 26.0 3.25"]


def tables_of(text: str) -> dict[str, list[list[str]]]:
    """Rows of each Markdown table, by its first heading."""
    parts = re.findall(r"(?:^\|.*\|\n)+", text + "\n", re.MULTILINE)
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines()] for part in parts]
    return {part[0][0]: part[2:] for part in rows}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "float16"], "expected one of auto, float32, bfloat16 on cpu, got 'float16'"),
        (["--precision", "int3"], "expected one of auto, float32, bfloat16 on cpu, got 'int3'"),
        (["--repeats", "0"], "--repeats: expected a whole number from 1, got 0"),
        (["--input", "no/such/scan"], "no/such/scan"),
        (["--markdown", "no_such_page.md"], "expected a page with marks for cpu, cuda, got none"),
        (["--config_file", "no_such.json"], "no_such.json"),
        (["--input", "SEVERAL"], "expected one scan, found 4"),
        pytest.param(
            ["--device", "cuda"],
            "expected a GPU that torch can use, found none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_at_once(
    options: list[str], message: str, small_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    words = [str(small_data / "images") if word == "SEVERAL" else word for word in options]
    assert main(words if "--device" in words else [*words, "--device", "cpu"]) == 1
    (record,) = caplog.records
    assert message in record.getMessage()


def test_a_command_that_fails_is_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 2 scans to be searched, got exit 1"):
        time_command(str(tmp_path / "nothing.nii.gz"), 2, ["--config_file", INFERENCE])


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", list(PARTS))
def test_the_page_has_a_part_for_each_device(device: str, tmp_path: Path) -> None:
    (other,) = set(PARTS) - {device}
    text = filled_page(PAGE, device, "MEASURED")
    assert f"{PARTS[device]}\n\nMEASURED\n\n{END}" in text
    assert text.split(PARTS[other])[1].split(END)[0] == PAGE.read_text().split(PARTS[other])[1].split(END)[0]
    (tmp_path / "page.md").write_text("text", encoding="utf-8")
    with pytest.raises(DataError, match="expected the lines"):
        filled_page(tmp_path / "page.md", device, "MEASURED")


def test_the_commands_of_the_page_are_understood() -> None:
    commands = re.findall(r"^python -m tools\.benchmark\b(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) >= 3
    for words in commands:
        read_options("", benchmark, shlex.split(words))  # ends the program where it does not understand

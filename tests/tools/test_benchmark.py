"""The benchmark measures the graph as it is: each moment counted once, shares that sum up, counts of the docs."""

from __future__ import annotations

import inspect
import json
import logging
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from scripts.core.commands import read_options
from scripts.core.errors import DataError
from tools.benchmark import ceilings as ceilings_module
from tools.benchmark import networks, series
from tools.benchmark.__main__ import main
from tools.benchmark.ceilings import Ceilings, ceilings, traffic_of, what_bounds
from tools.benchmark.command import benchmark, command_line
from tools.benchmark.networks import pairs, published_tiles
from tools.benchmark.page import PARTS, filled_page, table
from tools.benchmark.report import search_report
from tools.benchmark.search import FILES, NETWORK, ROOT, STAGES, Searched, search
from tools.benchmark.series import line_through, time_command
from tools.benchmark.stopwatch import Stage, Stopwatch, Timed, voxels_of
from tools.benchmark.training import StepTimes, train_steps
from tools.network.describe import END, DescriptionError

PAGE = ROOT / "docs" / "performance.md"
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
    """Lays a narrow network with random weights and small windows over the graph."""
    path = tmp_path_factory.mktemp("tiny") / "tiny.json"
    settings = {"network_def": TINY, "checkpoint": "", "window_size": [32, 32, 32], "window_overlap": 0.5}
    path.write_text(json.dumps({**settings, "candidate_threshold": 0.499}), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def scan(small_data: Path) -> str:
    return str(small_data / "images" / "phantom_0003.nii.gz")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that only moves when told to."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


# --- stopwatch --------------------------------------------------------------------------------------------------------


def test_each_moment_belongs_to_the_innermost_stage(clock: Callable[[float], None]) -> None:
    watch = Stopwatch("cpu")
    clock(5.0)  # before anything is open
    with watch.stage("whole"):
        clock(1.0)
        for _ in range(2):
            with watch.stage("part"):
                clock(0.25)
        clock(2.0)
    assert {name: one.seconds for name, one in watch.stages.items()} == {"whole": 3.0, "part": 0.5}


def test_a_stage_that_failed_is_closed_with_the_one_around_it(clock: Callable[[float], None]) -> None:
    watch = Stopwatch("cpu")
    with watch.stage("whole"):
        watch.begin("never ended")
        clock(1.0)
    with watch.stage("next"):
        clock(4.0)
    assert watch.stages["never ended"].seconds == 1.0
    assert watch.stages["next"].seconds == 4.0


def test_a_stage_that_is_not_open_is_named() -> None:
    with pytest.raises(RuntimeError, match="stage write: expected it among the open ones"):
        Stopwatch("cpu").end("write")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a peak begin again")
def test_a_peak_belongs_to_the_stage_that_made_it() -> None:
    watch = Stopwatch("cpu")
    for name, size in (("before", 1), ("large", 300_000_000), ("after", 1)):
        with watch.stage(name):
            np.ones(size, dtype=np.uint8)
    peaks = {name: one.peak_process_bytes for name, one in watch.stages.items()}
    assert peaks["large"] > max(peaks["before"], peaks["after"]) + 250_000_000


def test_timed_calls_count_the_larger_of_what_goes_in_and_comes_out() -> None:
    watch = Stopwatch("cpu")
    pad = Timed(lambda item: {"image": torch.zeros(1, 4, 4, 4)}, "pad", watch)
    pad({"image": torch.zeros(1, 2, 3, 4)})
    assert watch.stages["pad"].voxels == 64


@pytest.mark.parametrize(
    ("value", "voxels"), [(torch.zeros(1, 2, 3, 4), 24), ({"image": torch.zeros(2, 3, 4)}, 24), ({}, 0), ("text", 0)]
)
def test_voxels(value: Any, voxels: int) -> None:
    assert voxels_of(value) == voxels


# --- ceilings ---------------------------------------------------------------------------------------------------------


def test_ceilings_are_the_best_of_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "MATRIX_EDGES", (8, 16))
    monkeypatch.setattr(ceilings_module, "COPIED_BYTES", 1000)
    monkeypatch.setattr(ceilings_module, "seconds_of", lambda work, *_: [work() is None or 2.0, 0.5])
    assert ceilings(torch.device("cpu"), "float32") == Ceilings(2 * 16**3 / 0.5, 2 * 1000 / 0.5)


def test_a_gpu_multiplies_as_its_convolutions_do_and_afterwards_as_before() -> None:
    matrices, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = matrices.fp32_precision
    assert before != convolutions.fp32_precision  # else this says nothing
    with ceilings_module._convolutions_float32():
        assert matrices.fp32_precision == convolutions.fp32_precision
    assert matrices.fp32_precision == before


def test_traffic_is_what_operations_read_and_write() -> None:
    a, b = torch.zeros(10, 100), torch.zeros(10, 100)
    assert traffic_of(lambda: a + b) == 3 * 4000
    assert traffic_of(lambda: a.t()[:5]) == 0
    assert traffic_of(lambda: a.bfloat16()) == 4000 + 2000


@pytest.mark.parametrize(
    ("matrices", "memory", "words"),
    [(0.7, 0.6, "matrix multiplication"), (0.3, 0.6, "memory traffic"), (0.2, 0.3, "neither")],
)
def test_what_bounds(matrices: float, memory: float, words: str) -> None:
    assert what_bounds(matrices, memory).startswith(words)


# --- ratios -----------------------------------------------------------------------------------------------------------


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


def test_the_published_network_comes_first_and_nothing_twice() -> None:
    assert pairs(["compact", "paper", "compact"], ["bfloat16", "float32"]) == [
        ("paper", "float32"),
        ("compact", "bfloat16"),
        ("compact", "float32"),
        ("paper", "bfloat16"),
    ]
    assert pairs(["compact"], ["bfloat16"]) == [("compact", "bfloat16")]


def test_rates_of_a_search_by_hand() -> None:
    stages = {FILES: Stage(1.0), NETWORK: Stage(4.0, voxels=8_000_000), "decode": Stage(3.0)}
    stages["cut and stitch windows"] = Stage(2.0, voxels=5_000_000)
    about = Searched(lung_mm3=2e6, window_voxels=8_000_000)
    report = search_report(stages, about, flops=1000.0, limit=Ceilings(8e9, 1.0), published=None)
    assert report["seconds"] == 10.0
    assert [one["share"] for one in report["stages"]] == [0.1, 0.4, 0.3, 0.2]
    assert (report["seconds_after_reading"], report["seconds_besides_network"]) == (9.0, 3.0)
    assert report["network_flop_per_s"] == 2e9
    assert report["matrix_share"] == 0.25
    assert report["network_seconds_per_litre"] == 2.0
    assert report["network_times_published"] is None


def test_a_line_through_costs() -> None:
    line = line_through([1, 2, 4], [12.0, 14.0, 18.0])
    assert (line.start, line.each) == pytest.approx((10.0, 2.0))
    assert line.off == pytest.approx(0.0, abs=1e-9)
    assert line_through([1, 2, 3], [10.0, 10.0, 13.0]).off == pytest.approx(0.1)


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tiny: str, scan: str) -> tuple[dict[str, Stage], Searched]:
    return search([INFERENCE, tiny], input=scan, device="cpu", precision="float32")


def test_every_component_of_the_graph_is_a_stage(searched: tuple[dict[str, Stage], Searched]) -> None:
    stages, _ = searched
    graph = json.loads(Path(INFERENCE).read_text(encoding="utf-8"))
    named = {stage_of(one) for part in ("preprocessing", "postprocessing") for one in graph[part]["transforms"]}
    named = named - {"scan_to_grid"} | {"find lungs, crop", "orient", "resample"}  # what it is made of
    files = {name for name in stages if name.startswith("write ")}
    assert named | files | {"engine", FILES, NETWORK, "cut and stitch windows"} == set(stages)
    assert len(files) == len(graph["writer"]["writers"])


def stage_of(component: dict[str, Any]) -> str:
    name = component["_target_"].split(".")[-1]
    return STAGES.get(name, name)


def test_the_scan_is_described_as_it_is(searched: tuple[dict[str, Stage], Searched], small_data: Path) -> None:
    stages, about = searched
    assert about.name == "phantom_0003"
    assert about.lungs_found
    assert stages["read"].voxels == math.prod(about.shape)
    assert stages[NETWORK].voxels == about.window_voxels
    assert about.lung_mm3 < about.window_voxels <= about.windows * 32**3  # at 1 mm
    body_mm3 = math.prod(about.shape) * math.prod(about.spacing_mm)
    assert 0.1 < about.lung_mm3 / body_mm3 < 0.5
    assert about.litres == about.lung_mm3 / 1e6


def test_a_refused_scan_ends_it(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="got 0 and 1 refused"):
        search([INFERENCE, tiny], input=str(tmp_path / "broken.nii.gz"), device="cpu")
    assert "broken" in capsys.readouterr().err


# --- training ---------------------------------------------------------------------------------------------------------


def test_step_times_leave_out_the_first_steps(clock: Callable[[float], None]) -> None:
    def batches() -> Any:
        while True:
            clock(1.0)
            yield None

    def step(*_: Any) -> dict[str, torch.Tensor]:
        clock(3.0)
        return {"loss": torch.tensor(0.0)}

    engine, times = Engine(step), StepTimes(skipped=2)
    times.attach(engine)
    engine.run(batches(), max_epochs=1, epoch_length=5)
    assert (times.steps, times.seconds, times.waited) == (3, 12.0, 3.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_few_steps_of_the_training_graph(workers: int, small_data: Path, tmp_path: Path) -> None:
    overrides = {"network_def": TINY, "crop_size": 32, "batch_size": 1, "device": "cpu"}
    before = sorted(small_data.rglob("*"))
    speed = train_steps(str(small_data), workers, 2, cache_dir=str(tmp_path), cache_workers=1, **overrides)
    assert (speed.workers, speed.steps, speed.batch_size, speed.crop_size) == (workers, 2, 1, 32)
    assert speed.steps_per_s > 0
    assert 0 < speed.waiting < 1
    assert sorted(small_data.rglob("*")) == before


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ways in seconds: small matrices, and the published tiles of a smaller edge."""
    monkeypatch.setattr(ceilings_module, "MATRIX_EDGES", (256,))
    monkeypatch.setattr(ceilings_module, "COPIED_BYTES", 2**22)
    monkeypatch.setattr(networks, "TILE", 16)
    monkeypatch.setattr(networks, "TILE_MARGIN", 8)


@pytest.mark.usefixtures("small_ceilings")
def test_the_whole_command(tiny: str, scan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "synthetic", lambda *_: Path(scan))
    page, numbers = tmp_path / "performance.md", tmp_path / "new" / "numbers.json"
    shutil.copy(PAGE, page)
    options = ["--config_file", INFERENCE, tiny, "--input", scan, "--device", "cpu", "--repeats", "1", "--sizes", "0.4"]
    assert main([*options, "--precision", "fp32", "--json", str(numbers), "--markdown", str(page)]) == 0
    report = json.loads(numbers.read_text(encoding="utf-8"))
    (one,) = report["searches"]
    assert sum(stage["share"] for stage in one["stages"]) == pytest.approx(1.0)
    assert sum(stage["seconds"] for stage in one["stages"]) == pytest.approx(one["seconds"])
    assert one["precision"] == "float32"
    assert report["sizes"][0]["litres"] == report["scan"]["litres"]
    costs = {(cost["network"], cost["precision"]): cost for cost in report["compare"]}
    assert list(costs) == [("paper", "float32"), ("compact", "float32"), ("tiny", "float32")]
    assert costs["paper", "float32"]["times_published"] == 1.0
    assert costs["tiny", "float32"]["windows"] == report["scan"]["windows"]
    ratio = costs["paper", "float32"]["seconds_per_litre"] / one["network_seconds_per_litre"]
    assert one["network_times_published"] == pytest.approx(ratio)
    assert {
        name: f"{costs[name, 'float32']['flops_per_voxel'] / 1000:.2f}" for name in ("compact", "paper")
    } == counted()
    text = page.read_text(encoding="utf-8")
    assert report["command"] in text.split(PARTS["cpu"])[1].split(END)[0]
    assert all(f"| {stage['name']} " in text for stage in one["stages"])
    assert "no GPU was at hand" in text


def counted() -> dict[str, str]:
    """kFLOP per voxel of both networks as docs/network.md says."""
    page = (ROOT / "docs" / "network.md").read_text(encoding="utf-8")
    found = re.search(r"\| \*\*all\*\* \|.*\| \*\*([\d.]+)\*\* \| \*\*([\d.]+)\*\* \|", page)
    assert found is not None
    return {"compact": found[1], "paper": found[2]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp16"], "expected one of auto, float32, bfloat16 on cpu, got 'float16'"),
        (["--precision", "int3"], "expected one of auto, float32, bfloat16 on cpu, got 'int3'"),
        (["--compare", "larger"], "expected networks among compact, paper, got 'larger'"),
        (["--scans", "1", "0"], "--scans: expected whole numbers from 1, got 1 0"),
        (["--scans", "two"], "--scans: expected whole numbers from 1, got two"),
        (["--workers", "-1"], "--workers: expected whole numbers from 0, got -1"),
        (["--repeats", "0"], "--repeats: expected whole numbers from 1, got 0"),
        (["--sizes", "0.1"], "--sizes: expected numbers from 0.35 to 1.2, got 0.1"),
        (["--input", "no/such/scan"], "no/such/scan"),
        (["--markdown", "no_such_page.md"], "expected a page with marks for cpu, cuda, got none"),
        (["--config_file", "no_such.json"], "no_such.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_at_once(options: list[str], message: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert main([*options, "--device", "cpu"]) == 1
    (record,) = caplog.records
    assert message in record.getMessage()


def test_several_scans_are_refused(small_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--input", str(small_data / "images"), "--device", "cpu"]) == 1
    assert "expected one scan, found 4" in caplog.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["--device", "cuda"]) == 1
    assert "expected a GPU that torch can use, found none" in caplog.text


def test_a_command_that_fails_is_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 2 scans to be searched, got exit 1"):
        time_command(str(tmp_path / "nothing.nii.gz"), 2, ["--config_file", INFERENCE], 1)


def test_the_command_line_is_told_without_defaults() -> None:
    defaults = {name: option.default for name, option in inspect.signature(benchmark).parameters.items()}
    asked = {**defaults, "precision": ["bf16", "fp32"], "training": True, "input": "my scan"}
    told = command_line(benchmark, asked)
    assert told == "python -m tools.benchmark --input 'my scan' --precision bf16 fp32 --training"


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", list(PARTS))
def test_the_page_has_a_part_for_each_device(device: str) -> None:
    other = next(name for name in PARTS if name != device)
    text = filled_page(PAGE, device, "MEASURED")
    assert f"{PARTS[device]}\n\nMEASURED\n\n{END}" in text
    assert text.split(PARTS[other])[1].split(END)[0] == PAGE.read_text().split(PARTS[other])[1].split(END)[0]


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("text", encoding="utf-8")
    with pytest.raises(DescriptionError, match="expected the lines"):
        filled_page(tmp_path / "page.md", "cpu", "MEASURED")


COMMANDS = re.findall(r"^python -m scripts\.benchmark\b(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_the_commands_of_the_page_are_understood() -> None:
    assert len(COMMANDS) >= 3
    for words in COMMANDS:
        read_options("", benchmark, shlex.split(words))  # ends the program where it does not understand


def test_tables_are_markdown() -> None:
    assert table(["a", "b"], [["x", "1.25"]]) == "| a |    b |\n| - | ---: |\n| x | 1.25 |"

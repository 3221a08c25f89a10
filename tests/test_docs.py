"""The project's pages: their links work, and they agree with each other and with the code."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts.prepare.preview import WINDOW
from scripts.preprocess.lung_search import HU_RANGE
from scripts.report.html.overview import _OVERVIEW_WINDOW
from scripts.report.html.pictures import LUNG_WINDOW
from scripts.train.insertion import FAINTEST_HU, FAINTEST_HU_MM
from tests.test_architecture import IMPORTS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (
            target.exists() and (not anchor or anchor in anchors(target.read_text(encoding="utf-8")))
        ):
            broken.append(link)
    assert broken == []


def test_the_front_page_and_the_model_card_give_the_same_results() -> None:
    (front,), (card,) = (
        re.findall(r"^\| Measured .*?(?=\n\n)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        for name in ("README.md", "docs/README.md")
    )
    assert front == card


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(scripts\.[\w.]+)`", ARCHITECTURE))))
def test_the_components_that_the_architecture_names_exist(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_the_drawing_of_the_architecture_shows_the_imports() -> None:
    graph: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        if module.startswith("scripts."):
            taken = {name.split(".")[1] for name in names if name.startswith("scripts.")}
            own = module.split(".")[1]
            graph[own] = graph.get(own, set()) | (taken - {own})

    def below(package: str) -> set[str]:
        return graph[package].union(*map(below, graph[package]))

    direct = {name: taken - set().union(*map(below, taken)) for name, taken in graph.items()}
    drawn = re.findall(r"^    (\w+) --> (\w+)$", ARCHITECTURE, re.MULTILINE)
    assert sorted(drawn) == sorted((name, other) for name, others in direct.items() for other in others)


def component(config: Any, target: str) -> Any:
    """Return the first component of a graph whose ``_target_`` ends with ``target``; ``None`` if there is none."""
    parts = config.values() if isinstance(config, dict) else config if isinstance(config, list) else ()
    if isinstance(config, dict) and str(config.get("_target_")).endswith(target):
        return config
    return next((found for part in parts if (found := component(part, target)) is not None), None)


def config(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / f"configs/{name}.json").read_text(encoding="utf-8")))


def prose(name: str) -> str:
    """A page with its line breaks as spaces."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_pages_give_the_default_settings_of_the_configuration() -> None:
    found = config("inference")
    threshold, writers = found["threshold"], found["writer"]["writers"]
    (weaker,) = [writer["weaker_findings"] for writer in writers if "weaker_findings" in writer]
    window = "[{:.0f}, {:.0f}]".format(*found["hu_window"])
    results = [f"at the default threshold of {threshold} |", f"scan at {threshold} (95", f"from {threshold} on)"]
    statements = {
        "README.md": [*results, f"the lungs and {found['outside_lungs_mm']:.0f} mm around them"],
        "docs/README.md": [*results, f"the default is {threshold}.", f"HU window {window}"],
        "docs/usage.md": [f"from {found['candidate_threshold']} to below 1;"],
        "docs/outputs.md": [f"the {weaker} most probable weaker findings"],
        "Makefile": [f"THRESHOLD={threshold} "],
    }
    assert [(page, words) for page, some in statements.items() for words in some if words not in prose(page)] == []


def test_the_metadata_gives_the_results_of_the_model_card() -> None:
    metadata, card = config("metadata"), (ROOT / "docs/README.md").read_text(encoding="utf-8")
    threshold = config("inference")["threshold"]
    assert metadata["operating_points"]["default_threshold"] == threshold
    ((known, scans),) = re.findall(r"Nodules found, of (\d+) \|.*\| False findings, (\d+) scans", card)
    ((found, false, rate),) = re.findall(rf"^\| {threshold} \| (\d+) \| \d+ \| (\d+) \| (\S+) \(", card, re.MULTILINE)
    (dice,) = re.findall(r"^\| Mean Dice .*\| (\.\d+), n", card, re.MULTILINE)
    assert f"{int(false) / int(scans):.2f}" == rate
    assert f"| {found} of {known} |" in card
    assert metadata["eval_metrics"] == {
        "nodules_found_at_default_threshold": round(int(found) / int(known), 3),
        "false_findings_per_scan_at_default_threshold": float(rate),
        "mean_dice_of_found_nodules": float(dice),
    }


def test_the_architecture_gives_the_hu_windows() -> None:
    windows = (LUNG_WINDOW, _OVERVIEW_WINDOW, WINDOW)
    shown = [(w.centre_hu - w.width_hu / 2, w.centre_hu + w.width_hu / 2) for w in windows]
    stated = re.findall(r"^\| of [^|]*\| \[(\S+), (\S+)\]", ARCHITECTURE, re.MULTILINE)
    of_networks = [tuple(config("train")["hu_window"]), HU_RANGE]
    assert [(float(low), float(high)) for low, high in stated] == [*of_networks, *shown]


def test_the_method_gives_the_numbers_of_the_configurations() -> None:
    train, found = config("train"), config("inference")
    crops, donors = component(train, ".RandomCropd"), component(train, ".InsertNodulesd")
    tile, overlap = found["tile_size"][0], found["tile_overlap"]
    page = prose("docs/method.md").replace(" %", "%")
    statements = [
        f"the lungs plus {found['lung_margin_mm']:.0f} mm",
        "[{:.0f}, {:.0f}] HU is scaled".format(*found["hu_window"]),
        f"at most {tile}³ voxels that overlap by {tile * overlap:.0f}",
        f"within {found['outside_lungs_mm']:.0f} mm of the lungs",
        f"The best {found['top_k']} pass through non-maximum suppression at an IoU of {found['nms_overlap']}",
        f"are {train['crop_size']}³ voxels at {train['spacing_mm'][0]:.0f} mm. {train['nodule_share']:.0%} of them",
        f"{train['false_share']:.0%} of all crops (`false_share`)",
        f"rotation by ±{crops['rotate_degrees']:.0f}° and zoom by {crops['scale'][0]}–{crops['scale'][1]}",
        f"In {train['insertion_share']:.0%} of the crops",
        f"zoomed by {donors['scale'][0]}–{donors['scale'][1]} (copy-paste augmentation)",
        f"Of the others, {donors['bordering']:.0%} are centred",
        f"For {train['added_share']:.0%} of all donors (`added_share`)",
        f"an opacity of {donors['opacity'][0]}–{donors['opacity'][1]}",
        f"{donors['cored']:.0%} of these keep",
        f"at least {FAINTEST_HU:.0f} HU (below {FAINTEST_HU_MM / FAINTEST_HU:.0f} mm: {FAINTEST_HU_MM:.0f} HU·mm "
        "divided by the diameter)",
    ]
    assert [words for words in statements if words not in page] == []

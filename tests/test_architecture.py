"""The order of the packages: a scan passes through them from first to last, and imports only point back."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A package of scripts/ may import from itself and from those before it; tools/ may import from all of them.
ORDER = (
    *("core", "read", "preprocess", "network", "search", "decode", "metrics", "report", "train", "evaluate"),
    *("phantom", "prepare", "infer"),
)
MODULES_AT_THE_ROOT = 3
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("scripts", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(source: str, module: str, *, package: bool = False) -> set[str]:
    """Return the absolute names of everything that a module imports, wherever in it the import statement is.

    Args:
        source: the module's text.
        module: its dotted name.
        package: whether it is an ``__init__``.
    """
    found: set[str] = set()
    inside = module.split(".") if package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = inside[: len(inside) - node.level + 1] if node.level else []
            taken = ".".join([*start, *([node.module] if node.module else [])])
            found |= {f"{taken}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {
    module: imports(path.read_text(encoding="utf-8"), module, package=path.name == "__init__.py")
    for module, path in SOURCES.items()
}


def taken_from_below(names: set[str], module: str) -> list[str]:
    """Return which of a module's imports are from later packages, or from outside the bundle."""
    allowed = {f"scripts.{name}" for name in ORDER[: ORDER.index(module.split(".")[1]) + 1]}
    project = {name for name in names if name.split(".")[0] in ("scripts", "tools", "tests")}
    return sorted(name for name in project if ".".join(name.split(".")[:2]) not in allowed)


def test_every_package_has_its_place_and_the_root_stays_small() -> None:
    assert {path.parent.name for path in (ROOT / "scripts").glob("*/__init__.py")} == set(ORDER)
    assert len(list((ROOT / "scripts").glob("*.py"))) <= MODULES_AT_THE_ROOT


@pytest.mark.parametrize("module", [name for name in SOURCES if name.startswith("scripts.")])
def test_imports_follow_the_journey_of_a_scan(module: str) -> None:
    wrong = taken_from_below(IMPORTS[module], module)
    assert wrong == [], f"{module} imports what comes later in the journey of a scan (ORDER in {Path(__file__).name})"
    absolute = re.findall(r"^ *(?:from|import) scripts\b.*", SOURCES[module].read_text(encoding="utf-8"), re.MULTILINE)
    assert absolute == [], "inside scripts/ imports are relative: every bundle's package has this name"


def test_no_import_runs_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        known = {name if name in SOURCES else name.rpartition(".")[0] for name in names} & set(SOURCES)
        graph[module] = known - {module}
    assert sum(map(len, graph.values())) > len(graph)
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("source", "module", "wrong"),
    [
        ("from ..train.losses import NoduleLoss", "scripts.report.tables", ["scripts.train.losses.NoduleLoss"]),
        ("def f():\n    from ...infer import run", "scripts.core.overrides.check", ["scripts.infer.run"]),
        ("from .. import prepare", "scripts.phantom.chest", ["scripts.prepare"]),
        ("from tools.package import zoo", "scripts.infer.run", ["tools.package.zoo"]),
        ("import scripts.search.tiles", "scripts.network.blocks", ["scripts.search.tiles"]),
        ("from ..core.geometry import Point\nfrom .reader import read_scan\nimport torch", "scripts.read.scan", []),
    ],
)
def test_what_comes_later_is_noticed(source: str, module: str, wrong: list[str]) -> None:
    assert taken_from_below(imports(source, module), module) == wrong

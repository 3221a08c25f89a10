"""Settings and synthetic chests that all tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from scripts.phantom.chest import Chest, make_chest
from scripts.phantom.command import phantom

# The same examples in every run, without a time limit: a busy machine must not decide whether a law holds.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


WHOLE_RUNS = ("end_to_end", "graph", "ecosystem")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes: one that began last would run alone, while other processes wait."""
    items.sort(key=lambda item: item.path.parent.name not in WHOLE_RUNS)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread: narrow networks gain nothing from more, and on a busy machine threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def quiet_engines() -> Iterator[None]:
    """Restore the root logger after a test, because MONAI's and ignite's engines add handlers and set levels."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


@pytest.fixture(scope="session")
def bundle_root() -> str:
    """The project's folder."""
    return str(Path(__file__).resolve().parents[1])


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four miniature chests, their masks and a datalist (three for training, one for validation)."""
    folder = tmp_path_factory.mktemp("small_data")
    phantom(str(folder), scans=4, seed=5, format="nifti", scale=0.4)
    return folder


@pytest.fixture(scope="session")
def small_chest() -> Chest:
    """A miniature of 148 × 129 × 124 mm with one nodule at a vessel and one at the pleura; not to be changed."""
    return make_chest(2, scale=0.4, nodules=2)


@pytest.fixture(scope="session")
def full_chest() -> Chest:
    """A chest of 389 × 317 × 309 mm, arms down, with eight nodules, three of them at the pleura; not to be changed."""
    return make_chest(3, nodules=8)

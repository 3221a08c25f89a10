"""The training graph: it runs, goes on where it was cut, refuses what cannot work, and its evaluation writes files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.network import CompactNet
from tests.bundle import EVALUATE, INFERENCE, QUICK, ROOT, TRAIN, options, run, started, succeeded, typed
from tests.interruption import contents

PAPER = str(ROOT / "configs" / "paper.json")
NARROW = {"network_def#widths": "[4,4,8,8]", "network_def#fused_widths": "[4,4]", "network_def#lateral": 8} | {
    f"network_def#{name}": value for name, value in (("dim", 16), ("layers", 1), ("heads", 2), ("feed_forward", 16))
}


def settings(data: Path, output: Path, **more: Any) -> list[str]:
    """The command line of a tiny training; ``#`` in names as ``__``."""
    named = {name.replace("__", "#"): value for name, value in more.items()}
    return options({"dataset_dir": data, "output_dir": output, **QUICK, **named})


def train(data: Path, output: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return typed("training", "--config_file", TRAIN, *settings(data, output, **more))


def losses(log: str) -> list[str]:
    """What the log says of each step, but for times."""
    return re.findall(r"step (\d+ of \d+: [^;]*);", log)


def state(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "state.pt", weights_only=True))


def same(first: Any, second: Any) -> bool:
    """Equal to the last bit, all the way down."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@pytest.fixture(scope="module")
def whole(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training of two epochs that ran through, and its log."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, succeeded(train(small_data, folder, max_epochs=2)).stdout


def test_a_training_leaves_weights_state_pictures_and_curves(whole: tuple[Path, str]) -> None:
    folder, log = whole
    assert [line.split(":")[0] for line in losses(log)] == [f"{n} of 4" for n in (1, 2, 3, 4)]
    assert re.search(r"[\d.]+ s per step, \d+ % of it waiting for data, .* left", log)
    assert re.search(r"epoch 2: val_cpm [\d.]+", log)
    assert torch.load(folder / "model.pt", weights_only=True).keys() == CompactNet().state_dict().keys()
    assert {path.name for path in (folder / "pictures").iterdir()} == {"epoch_0001.png", "epoch_0002.png"}
    assert any(path.name.startswith("events") for path in (folder / "tensorboard").iterdir())


def test_the_same_seed_gives_the_same_losses_and_another_one_others(
    whole: tuple[Path, str], small_data: Path, tmp_path: Path
) -> None:
    again = train(small_data, tmp_path / "again", max_epochs=2)
    assert losses(again.stdout) == losses(whole[1])
    assert same(state(tmp_path / "again"), state(whole[0]))
    other = train(small_data, tmp_path / "other", max_epochs=1, seed=1)
    assert losses(other.stdout)[0].split(":")[1] != losses(whole[1])[0].split(":")[1]


def test_a_training_that_was_killed_goes_on_as_if_nothing_had_happened(
    whole: tuple[Path, str], small_data: Path, tmp_path: Path
) -> None:
    """Killed in the second epoch: its first step is done again, with the same result."""
    line = ["-m", "monai.bundle", "run", "training", "--config_file", TRAIN]
    with started(*line, *settings(small_data, tmp_path, max_epochs=2)) as process:
        seen = ""
        for text in process.stdout or ():
            seen += text
            if "step 3 of 4" in text:
                process.kill()
    assert state(tmp_path)["progress"]["epoch"] == 1
    rest = succeeded(train(small_data, tmp_path, max_epochs=2))
    assert "resuming from" in rest.stdout
    assert losses(seen)[:2] + losses(rest.stdout) == losses(whole[1])
    assert losses(seen)[2] == losses(rest.stdout)[0]
    assert same(state(tmp_path), state(whole[0]))
    for name, value in torch.load(whole[0] / "model.pt", weights_only=True).items():
        assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)[name], value)


def test_the_papers_network_is_one_overlay_and_its_weights_are_no_ones_else(small_data: Path, tmp_path: Path) -> None:
    words = settings(small_data, tmp_path / "paper", max_epochs=1, **NARROW)
    succeeded(typed("training", "--config_file", str([TRAIN, PAPER]), *words))
    assert (tmp_path / "paper" / "pictures" / "epoch_0001.png").exists()
    scan = small_data / "images" / "phantom_0003.nii.gz"
    places = {"input": scan, "output_dir": tmp_path / "found", "checkpoint": tmp_path / "paper" / "model.pt"}
    run("inference", INFERENCE, PAPER, **NARROW, **places)
    assert (tmp_path / "found" / "phantom_0003" / "report.html").exists()
    refused = train(small_data, tmp_path / "compact", max_epochs=1, checkpoint=tmp_path / "paper" / "model.pt")
    assert refused.returncode != 0
    assert re.search(r"expected the 199 tensors of CompactNet, got \d+, of which \d+ do not belong", refused.stderr)
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("option", ["learning_rat", "train__trainer__max_epoch"])
def test_an_unknown_override_is_refused(option: str, tmp_path: Path) -> None:
    result = train(tmp_path, tmp_path / "out", **{option: 1})
    assert result.returncode != 0
    assert f"--{option.replace('__', '#')}" in result.stderr
    assert "Traceback" not in result.stderr


# --- caching


def test_what_was_cached_by_itself_trains_the_same(whole: tuple[Path, str], small_data: Path, tmp_path: Path) -> None:
    said = run("caching", TRAIN, dataset_dir=small_data, cache_dir=tmp_path / "cache", cache_workers=2)
    assert "preprocessing 4 scans with 2 workers" in said
    assert "cached 4 of 4 scans" in said
    assert losses(said) == []
    assert contents(tmp_path / "cache") == contents(small_data / "cache")
    trained = train(small_data, tmp_path / "out", max_epochs=1, cache_dir=tmp_path / "cache")
    assert "preprocessing" not in trained.stdout
    assert losses(trained.stdout)[0].split(":")[1] == losses(whole[1])[0].split(":")[1]


def test_scans_that_cannot_be_preprocessed_are_named_or_left_out(whole: Any, small_data: Path, tmp_path: Path) -> None:
    """Their headers are fine, so that the datalist is; their voxels are cut off."""
    training = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))["training"]
    (tmp_path / "data").mkdir()
    cut = [*training[:2], {**training[2], "image": "cut.nii.gz"}]
    data = copy_of(small_data, tmp_path / "data", training=cut)
    whole_scan = (small_data / training[2]["image"]).read_bytes()
    (data / "cut.nii.gz").write_bytes(whole_scan[: len(whole_scan) // 2])
    result = train(data, tmp_path / "out", max_epochs=1)
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "error: 1 scans cannot be preprocessed; correct them, remove them from the datalists" in result.stderr
    assert re.search(rf"^  {training[2]['name']}  .*cut\.nii\.gz: expected ", result.stderr, re.MULTILINE)
    assert losses(result.stdout) == []
    result = succeeded(train(data, tmp_path / "out", max_epochs=1, skip_broken="true"))
    assert "1 scans cannot be preprocessed and are left out" in result.stdout
    assert len(losses(result.stdout)) == 2


# --- bad input


def copy_of(small_data: Path, folder: Path, **sections: Any) -> Path:
    """The small data under another datalist."""
    content = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))
    for name in ("images", "masks"):
        (folder / name).symlink_to(small_data / name)
    shutil.copytree(small_data / "cache", folder / "cache", dirs_exist_ok=True)
    (folder / "datalist.json").write_text(json.dumps({**content, **sections}), encoding="utf-8")
    return folder


def refused(result: subprocess.CompletedProcess[str], folder: Path) -> str:
    """What is said of a training that did not begin."""
    assert result.returncode != 0
    assert losses(result.stdout) == []
    assert "Traceback" not in result.stderr
    assert "preprocessing" not in result.stdout
    assert not (folder / "state.pt").exists()
    return result.stderr


def test_lists_that_cannot_be_trained_on_are_refused_first(whole: Any, small_data: Path, tmp_path: Path) -> None:
    """A list without scans, one without nodules, and one with a missing file and a nodule outside its scan."""
    training = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))["training"]
    first, second, third = training
    far = [[9999.0, *second["box"][0][1:]], *second["box"][1:]]
    for number, (items, *said) in enumerate(
        (
            ([], "training list: expected at least one scan, got none; --dataset_dir must hold a datalist.json"),
            (
                [{"image": item["image"], "box": []} for item in training],
                "training list: expected nodules or donors, got 3 scans without any",
            ),
            (
                [{**first, "image": "gone.nii.gz"}, {**second, "box": far}, third],
                "2 datalist entries cannot be used",
                "gone.nii.gz: expected a file, found none",
                "item 1: box 0: expected a centre inside the scan",
            ),
        )
    ):
        (tmp_path / str(number)).mkdir()
        data = copy_of(small_data, tmp_path / str(number), training=items)
        message = refused(train(data, tmp_path / "out"), tmp_path / "out")
        assert [part for part in said if part not in message] == []


def test_without_nodules_to_validate_the_metric_is_undefined_and_the_last_weights_are_kept(
    whole: Any, small_data: Path, tmp_path: Path
) -> None:
    validation = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))["validation"]
    data = copy_of(small_data, tmp_path, validation=[{"image": item["image"], "box": []} for item in validation])
    result = succeeded(train(data, tmp_path / "out", max_epochs=2))
    assert "the validation metric is undefined, and the newest weights are kept" in result.stdout
    averaged = {n.removeprefix("module."): v for n, v in state(tmp_path / "out")["average"].items()}
    kept = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert all(torch.equal(value, averaged[name]) for name, value in kept.items())


def test_a_loss_that_is_no_number_ends_the_training_with_a_message_and_weights(
    whole: Any, small_data: Path, tmp_path: Path
) -> None:
    result = train(small_data, tmp_path, max_epochs=1, learning_rate=1e30, warmup_iterations=0, gradient_norm=1e30)
    assert result.returncode != 0
    assert re.search(
        r"expected a finite (loss|gradient norm), got (nan|inf); the weights before this step are in .*stopped\.pt",
        result.stderr,
    )
    assert result.stderr.count("Traceback") == 0
    assert torch.load(tmp_path / "stopped.pt", weights_only=True).keys() == CompactNet().state_dict().keys()


# --- evaluation


def test_evaluation_writes_what_it_scored_and_the_scores(small_data: Path, tmp_path: Path) -> None:
    run("evaluating", TRAIN, EVALUATE, dataset_dir=small_data, output_dir=tmp_path, resamples=50)
    (content,) = json.loads((tmp_path / "froc.json").read_text(encoding="utf-8")).values()
    truth = json.loads((small_data / "datalist.json").read_text(encoding="utf-8"))["validation"]
    nodules = sum(len(item["box"]) for item in truth)
    assert (content["scans"], content["nodules"]) == (len(truth), nodules)
    readings = list(content["sensitivity_at"].values())
    assert readings == sorted(readings)
    assert content["cpm"] == pytest.approx(sum(readings) / 7, abs=1e-5)
    outlines = json.loads((tmp_path / "masks.json").read_text(encoding="utf-8"))
    assert outlines["without_reference"] == 0
    for setting in ("every_nodule", "oracle"):
        assert len(outlines["nodules"][setting]) == nodules
    assert len(outlines["nodules"]["matched"]) <= nodules
    assert outlines["summary"]["oracle"]["all"]["dice"]["mean"] > 0.5  # the released weights draw nodules
    written = {path.name for path in tmp_path.iterdir()}
    assert {"predictions.csv", "annotations.csv", "seriesuids.csv", "froc.csv", "froc.png"} <= written

"""Overrides of the graphs, from the command line, from argument files and from Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import fire
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.scripts import create_workflow, run

from scripts.core.errors import UserError, user_error_in
from scripts.core.overrides.names import RECORDS
from scripts.core.overrides.values import FIXED
from scripts.network.blocks import COARSEST_STRIDE
from tests.bundle import ROOT, options

CONFIGS = ROOT / "configs"
INFERENCE = ("input", "dataset_dir", "output_dir", "checkpoint", "series", "threshold", "overwrite", "hu_window")
TRAIN = ("datalists", "dataset_dir", "output_dir", "image_dir", "max_epochs", "skip_broken", "crop_size", "spacing_mm")


class Graph:
    """A graph whose run hands over what some names have become, and does nothing else."""

    seen: dict[str, Any]

    def __init__(self, folder: Path, graphs: list[str], names: tuple[str, ...]) -> None:
        values = {name: f"@{name}" for name in names}
        keep = {"_target_": f"{__name__}.keep", "_requires_": "@scripts_path", "values": values}
        overlay = {"initialize": ["@scripts_path"], "run": ["@kept"], "kept": keep}
        self.folder = folder
        self.files = [str(CONFIGS / f"{graph}.json") for graph in graphs]
        self.files.append(self.written(f"{graphs[-1]}_overlay.json", json.dumps(overlay)))

    def written(self, name: str, text: str) -> str:
        """The path of a new file beside the graph's."""
        (self.folder / name).write_text(text, encoding="utf-8")
        return str(self.folder / name)

    def words(self, *words: str) -> dict[str, Any]:
        """The values after a command line, by the very functions that read the command line."""
        command = ["run", "--config_file", str(self.files), *words]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["monai.bundle", *command])
            patch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("monai.bundle.__main__", None))
            fire.Fire({"run": run}, command=command)
        return Graph.seen

    def called(self, **overrides: Any) -> dict[str, Any]:
        run(config_file=overrides.pop("config_file", self.files), **overrides)
        return Graph.seen

    def workflow(self, **overrides: Any) -> dict[str, Any]:
        workflow = ConfigWorkflow(self.files, workflow_type=None, bundle_root=str(ROOT), **overrides)
        workflow.initialize()
        workflow.run()
        return Graph.seen


def keep(values: dict[str, Any]) -> None:
    Graph.seen = values


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook for plain messages is the process's; and a host program has a command line of its own."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["host.py", "--config_file", "its_own.ini", "--verbose"])
    monkeypatch.chdir(ROOT)


@pytest.fixture
def inference(tmp_path: Path) -> Graph:
    return Graph(tmp_path, ["inference"], INFERENCE)


@pytest.fixture
def train(tmp_path: Path) -> Graph:
    return Graph(tmp_path, ["train"], TRAIN)


def refusal(attempt: Callable[[], object]) -> str:
    """The one line with which something is refused."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps the error in one of its own
        attempt()
    error = user_error_in(caught.value)
    assert isinstance(error, UserError), repr(caught.value)
    assert "\n" not in str(error)
    return str(error)


# --- words of the command line ----------------------------------------------------------------------------------------

LIKE_PYTHON = (
    *("2024_01_15", "1e5", "[a]", "None", "True", "0x10", "1.", "{a:1}", "a,b", '"x"', "(1)", "'x'", "1_000", "-1"),
    *("a#b", "a::b", "#", "@x", "@threshold#x", "a@b#c", "$HOME/scans", "x=y", "a b", "~/x", "..", "50%"),
)


@pytest.mark.parametrize("text", LIKE_PYTHON)
def test_a_path_is_text_as_typed(text: str, inference: Graph) -> None:
    """And so is a series."""
    seen = inference.words("--input", text, f"--output_dir={text}", "--checkpoint", text, "--series", text)
    assert [seen[name] for name in ("input", "dataset_dir", "output_dir", "checkpoint", "series")] == [text] * 5


def test_a_path_that_looks_like_an_expression_is_the_file_when_it_is_there(
    inference: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    (tmp_path / "$(x)").touch()
    monkeypatch.chdir(tmp_path)
    assert inference.words("--bundle_root", str(ROOT), "--input", "$(x)")["input"] == "$(x)"
    assert inference.words("--bundle_root", str(ROOT), "--input", "$'a' + 'b'")["input"] == "ab"


@pytest.mark.parametrize(
    ("text", "lists"),
    [
        ("['a.json', 'b.json']", ["a.json", "b.json"]),
        ("[a,b]", ["a", "b"]),
        ("['a#1.json']", ["a#1.json"]),
        ("1e5", ["1e5"]),
        ("a#b.json", ["a#b.json"]),
        ("a,b.json", ["a,b.json"]),
    ],
)
def test_a_list_is_a_list_and_one_path_a_list_of_one(text: str, lists: list[str], train: Graph) -> None:
    seen = train.words("--datalists", text, "--dataset_dir", text, "--image_dir", text)
    assert (seen["datalists"], seen["dataset_dir"], seen["image_dir"]) == (lists, text, text)


STRAY, REPEATED, ALONE = (
    "expected --name value, got {}",
    "expected it once, got it 2 times",
    "{}: expected a value after it",
)
RUNS = "expected something to run (run, inference), got '{}'"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("inference --input a.nii b.nii", STRAY.format("'b.nii'")),
        ("--input a.nii b.nii --run_id run", STRAY.format("'b.nii'")),
        ("inference --input a.nii b.nii c.nii", STRAY.format("'b.nii', 'c.nii'")),
        ("inference initialize", STRAY.format("'initialize'")),
        ("run - x", STRAY.format("'-', 'x'")),
        ("run -- --threshold 0.3", STRAY.format("'--'")),
        ("--threshold 0.3 --threshold 0.4", REPEATED),
        ("--threshold=0.3 --threshold 0.3", REPEATED),
        ("--network_def#layers 2 --network_def::layers 3", REPEATED),
        ("--output-dir a --output_dir b", REPEATED),
        ("--input", ALONE.format("--input")),
        ("--input --overwrite true", ALONE.format("--input")),
        ("--threshold", ALONE.format("--threshold")),
        ("--input a --dataset_dir b", "expected --input or --dataset_dir, which replaces it, got both"),
        *((f"{run_id} --input x", RUNS.format(run_id)) for run_id in ("threshold", "nothing", "initialize", "series")),
        ("--init_id b.nii", "--init_id: expected a name"),
        ("--final_id b.nii", "--final_id: expected a name"),
        ("--thresold 1 -overwritte true", "--thresold (did you mean threshold"),
        ("--thresold 1 -overwritte true", "--overwritte (did you mean overwrite"),
    ],
)
def test_words_that_cannot_be_meant_are_refused(words: str, said: str, inference: Graph) -> None:
    assert said in refusal(lambda: inference.words(*words.split()))


# --- names ------------------------------------------------------------------------------------------------------------

KNOWN: dict[str, Any] = {
    "threshold": 0.3,
    "hu_window": [-1000, 400],
    "network_def#layers": 2,
    "network_def::heads": 2,
    "evaluator#amp": True,
    "network#fuse": False,
    "dataloader#num_workers": 2,
    "evaluator#_disabled_": False,
    "run_name": "x",
    "experiment_name": "y",
}
UNKNOWN: dict[str, Any] = {  # value, and what is offered
    "thresold": (0.3, "threshold"),
    "network_def#layer": (2, "network_def#layers"),
    "preset": ("paper", "network_def"),
    "evaluator#ampp": (True, "evaluator#amp"),
    "hu_windw": ([1, 2], "hu_window"),
    "dataloader#num_worker": (2, "dataloader#num_workers"),
    "dataloader#batch_size": (2, ""),
    "max_epochs": (2, ""),
}


def _yaml(values: dict[str, Any]) -> str:
    return "".join(f'"{name}": {json.dumps(value)}\n' for name, value in values.items())


WAYS: dict[str, Callable[[Graph, dict[str, Any]], object]] = {
    "words": lambda graph, given: graph.words(*options(given)),
    "JSON": lambda graph, given: graph.words("--args_file", graph.written("args.json", json.dumps(given))),
    "YAML": lambda graph, given: graph.words("--args_file", graph.written("args.yaml", _yaml(given))),
    "Python": lambda graph, given: graph.called(**given),
    "workflow": lambda graph, given: graph.workflow(**given),
    "create_workflow": lambda graph, given: create_workflow(
        config_file=graph.files, workflow_type="infer", **given
    ).run(),
}


@pytest.mark.parametrize("way", WAYS)
def test_known_names_pass_and_unknown_ones_are_refused_with_the_nearest(way: str, inference: Graph) -> None:
    WAYS[way](inference, KNOWN)
    assert (Graph.seen["threshold"], Graph.seen["hu_window"]) == (0.3, [-1000, 400])
    given = {name: value for name, (value, _) in UNKNOWN.items()}
    message = refusal(lambda: WAYS[way](inference, {"threshold": 0.3, **given}))
    hints = [f"--{name} (did you mean {nearest}" for name, (_, nearest) in UNKNOWN.items()]
    assert [hint for hint in hints if hint not in message] == []
    assert "--threshold" not in message


@pytest.mark.parametrize("way", WAYS)
def test_training_is_checked_as_well(way: str, train: Graph) -> None:
    WAYS[way](train, {"train#trainer#amp": True, "max_epochs": 3})
    assert Graph.seen["max_epochs"] == 3
    message = refusal(lambda: WAYS[way](train, {"train#trainer#ampp": True}))
    assert "--train#trainer#ampp (did you mean train#trainer#amp" in message


def test_laid_over_files_count(tmp_path: Path) -> None:
    both = Graph(tmp_path, ["train", "evaluate"], ("datalists", "threshold", "max_epochs"))
    assert both.words("--threshold", "0.3")["threshold"] == 0.3
    assert both.workflow(threshold=0.3)["threshold"] == 0.3
    assert "--thresold" in refusal(lambda: both.workflow(thresold=0.3))


def test_names_of_a_file_elsewhere_are_no_overrides(tmp_path: Path) -> None:
    """From Python the files are not known: what is a component, is run or is referred to may come from one."""
    graph = Graph(tmp_path, ["train"], ("learning_rate",))
    mine = {"my_rate": 0.5, "learning_rate": "@my_rate", "mine": {"_target_": "dict"}, "my_run": ["$print()"]}
    graph.files.append(graph.written("mine.json", json.dumps(mine)))
    assert graph.workflow()["learning_rate"] == 0.5
    assert "--my_rat " in refusal(lambda: graph.workflow(my_rat=0.4))


def test_arguments_of_the_command_line_stand_before_those_of_a_file(inference: Graph) -> None:
    file = inference.written("args.json", json.dumps({"input": "a#b", "threshold": 0.3, "series": "1.5"}))
    seen = inference.words("--args_file", file, "--threshold", "0.4")
    assert (seen["input"], seen["threshold"], seen["series"]) == ("a#b", 0.4, "1.5")


def test_a_path_from_python_is_text_or_refused(inference: Graph) -> None:
    assert inference.called(input="a#b", output_dir="@x")["input"] == "a#b"
    assert inference.called(input=Path("a/b"))["input"] == Path("a/b")
    assert "expected a path without # and ::" in refusal(lambda: inference.workflow(input="a#b"))
    assert "input: expected text, got 20240115" in refusal(lambda: inference.called(input=20240115))


def test_without_a_workflow_nothing_is_checked() -> None:
    parser = ConfigParser({**json.loads((CONFIGS / "inference.json").read_text()), "thresold": 1})
    assert parser.get_parsed_content("scripts_path") is None


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *(
            (("--threshold", text), f"threshold: expected a number, such as 0.5, got '{text}'")
            for text in ("50%", "0,5", "None", "nan", "True", "high", "[0.5]", "1e999")
        ),
        (("--threshold", "1.5"), "threshold: expected a number from 0 to 1, got 1.5"),
        (("--threshold", "0.0001"), "--threshold: expected at least candidate_threshold (0.0002)"),
        (("--top_k", "0"), "top_k: expected at least 1, got 0"),
        (("--lung_margin_mm", "-20"), "lung_margin_mm: expected at least 0, got -20"),
        (("--hu_window", "[400, -1000]"), "hu_window: expected the lower HU first"),
        (("--top_k", "2.5"), "top_k: expected a whole number, such as 3, got '2.5'"),
        (("--tiles_at_once", "x"), "tiles_at_once: expected a whole number"),
        (("--hu_window", "5"), "hu_window: expected 2 numbers"),
        (("--hu_window", "[a,b]"), "hu_window: expected a number"),
        (("--overwrite", "1"), "overwrite: expected true or false, got 1"),
        (("--background", "no"), "background: expected true or false, got 'no'"),
        (("--segment#threshold", "50%"), "threshold: expected a number, such as 0.5, got '50%'"),
        (("--device", "gpu"), "device gpu: expected cpu, cuda or cuda:N"),
        (("--device", "0"), "device 0: expected cpu, cuda or cuda:N"),
        (("--device", "cuda:99"), "device cuda:99: expected a"),
        (("--device", "meta"), "device meta: expected a device that torch can use"),
        (("--stride", "4"), "--stride: expected the network's, got 4; leave it out"),
        (("--spacing_mm", "[2,2,2]"), "--spacing_mm: expected [1.0, 1.0, 1.0], for which"),
        (("--scan_to_grid#spacing_mm", "[2,2,2]"), "spacing_mm: expected [1.0, 1.0, 1.0], for which"),
        (("--settings#threshold", "0.9"), "got a part of the record of what ran; set --threshold"),
        (("--model_facts#checkpoint", "x"), "got a part of the record of what ran; set --checkpoint"),
        (("--inferer#inferer#stride", "4"), "one value for all 3 places of stride"),
        (("--inferer#inferer#tile_size", "[64, 64, 64]"), "one value for all 2 places of tile_size"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    graph = Graph(tmp_path, ["inference"], ("input",))
    assert said in refusal(lambda: graph.words(*words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # Training has one grid.
        *((f"--{name} 4", "; leave it out") for name in ("stride", "loss#stride")),
        *((f"--{name} [2,2,2]", "; leave it out") for name in ("spacing_mm", "scan_to_grid#transforms#0#spacing_mm")),
        ("--added_share 60", "added_share: expected a number from 0 to 1, got 60"),
        # Crops can be halved as often as the networks do.
        ("--crop_size 50", f"crop_size: expected a multiple of {COARSEST_STRIDE}, got 50"),
    ],
)
def test_values_that_training_cannot_use_are_refused(words: str, said: str, train: Graph) -> None:
    assert said in refusal(lambda: train.words(*words.split()))


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--threshold .3", "threshold", 0.3),
        ("--threshold 1", "threshold", 1),
        ("--threshold 0x1", "threshold", 1),
        ("--threshold 3e-1", "threshold", 0.3),
        ("--threshold=$0.5/2", "threshold", 0.25),
        *((f"--overwrite{text}", "overwrite", True) for text in ("", "=true", "=True", "=TRUE")),
    ],
)
def test_numbers_are_numbers_and_switches_are_switched(words: str, name: str, value: float, inference: Graph) -> None:
    seen = inference.words(*words.split())[name]
    assert (seen, isinstance(seen, bool)) == (value, isinstance(value, bool))


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        *((f"--skip_broken {text}", "skip_broken", True) for text in ("true", "True", "TRUE")),
        ("--skip_broken false", "skip_broken", False),
        (f"--crop_size {3 * COARSEST_STRIDE}", "crop_size", 3 * COARSEST_STRIDE),
        ("--spacing_mm [1,1,1]", "spacing_mm", [1, 1, 1]),  # the network's, so that nothing changes
    ],
)
def test_training_takes_what_it_can_use(words: str, name: str, value: object, train: Graph) -> None:
    assert train.words(*words.split())[name] == value


# --- the record of what ran -------------------------------------------------------------------------------------------


def test_the_record_says_what_the_components_got(tmp_path: Path) -> None:
    graph = Graph(tmp_path, ["inference"], ("settings",))
    assert graph.words("--threshold", "0.4")["settings"]["threshold"] == 0.4
    for name, place, value in (
        ("threshold", "segment#threshold", 0.9),
        ("candidate_threshold", "decode#threshold", 0.01),
        ("hu_window", "scale_hu#hu_window", [-1000, 400]),
        ("precision", "inferer#precision", "float32"),
    ):
        settings = graph.words(f"--{place}", str(value))["settings"]
        assert settings[name] == value
        usual = graph.words()["settings"]
        assert {key for key in usual if usual[key] != settings[key]} == {name}


def test_every_setting_is_recorded_from_where_it_counts() -> None:
    """A knob with one place is recorded from there; one with several cannot be set for one of them alone."""
    parser = ConfigParser(json.loads((CONFIGS / "inference.json").read_text(encoding="utf-8")))
    for name, content in parser.get("settings").items():
        if name not in ("device", "network", *FIXED):
            where = content[1:]
            assert where in parser
            key = name.replace("window_", "tile_")  # nodules.json keeps the names of 0.5
            assert parser.get(where) == f"@{key}" or where == key
    assert all(record in parser for record in RECORDS)

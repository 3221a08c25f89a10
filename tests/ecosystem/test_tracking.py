"""docs/monai.md: settings from a YAML file, and a training tracked by MLflow under the names that it was given."""

from __future__ import annotations

import re
import shlex
import sqlite3
from pathlib import Path

import yaml

from tests.bundle import ROOT, graph
from tests.ecosystem.conftest import Program
from tests.ecosystem.stand_ins import beside, needs

PAGE = (ROOT / "docs" / "monai.md").read_text(encoding="utf-8")
(SETTINGS,) = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
(COMMAND,) = re.findall(r"^python -m (monai\.bundle run training .*)$", PAGE, re.MULTILINE)


@needs("mlflow", "mlflow")
def test_a_tracked_training(program: Program, elsewhere: Path) -> None:
    (elsewhere / "settings.yaml").write_text(SETTINGS + "batch_size: 1\ncrop_size: 32\nnum_workers: 0\n", "utf-8")
    module, *words = shlex.split(COMMAND)
    start = f"import runpy; sys.argv[1:] = {words!r}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    program(code=beside("mlflow") + start)
    assert (elsewhere / "runs/tracked/state.pt").exists()
    with sqlite3.connect(elsewhere / "runs/tracked/mlruns.db") as store:
        metrics = {name for (name,) in store.execute("select key from metrics")}
        assert {"train_loss", "val_cpm"} <= metrics
        assert ("chests",) in store.execute("select name from experiments").fetchall()
        assert store.execute("select name, status from runs").fetchall() == [("first", "FINISHED")]


def test_a_yaml_overlay_changes_what_it_names(tmp_path: Path) -> None:
    """pyyaml is a requirement of its own: MONAI reads YAML only where it is there."""
    requirements = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert re.search(r"^pyyaml~=", requirements, re.MULTILINE)
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(yaml.safe_dump({"max_epochs": 7, "loss#classification#gamma": 1.5}), encoding="utf-8")
    parser = graph("train", overlay)
    assert parser.get("loss#classification#gamma") == 1.5
    assert parser.get_parsed_content("val_interval") == 5
    assert parser.get_parsed_content("max_epochs") == 7

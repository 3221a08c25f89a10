"""Several ranks share a run: what they leave is what one process leaves, a refused scan included."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tests.ecosystem.conftest import NAME, Program

VARIES = re.compile(r'"seconds": [\d.]+')


def command(output: str, *overlays: str) -> tuple[str, ...]:
    configs = [f"bundles/{NAME}/configs/{name}.json" for name in ("inference", *overlays)]
    where = ("--input", "several", "--output_dir", output, "--precision", "float32")
    return ("monai.bundle", "run", "inference", "--config_file", str(configs), *where)


def files(folder: Path) -> dict[str, str]:
    """Text of the tables, without times."""
    wanted = sorted(path for path in folder.rglob("*") if path.suffix in (".csv", ".json"))
    return {path.relative_to(folder).as_posix(): VARIES.sub("", path.read_text(encoding="utf-8")) for path in wanted}


def test_two_ranks_leave_what_one_process_leaves(program: Program, elsewhere: Path) -> None:
    shutil.copytree(elsewhere / "data/images", elsewhere / "several")
    (elsewhere / "several/broken.nii.gz").write_bytes(b"no image")
    launcher = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    two = program(*launcher, *command("found2", "multi_gpu_inference"), fails=True)
    one = program(*command("found1"), fails=True)
    assert "4 scans searched, 1 refused (broken)" in one.stdout
    counts = [int(count) for count in re.findall(r"^(\d+) scans searched", two.stdout, re.MULTILINE)]
    assert sum(counts) == 4
    first, second = files(elsewhere / "found1"), files(elsewhere / "found2")
    assert {"predictions.csv", "phantom_0000/nodules.json"} <= set(first)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    rows = [
        re.findall(r"phantom_\d+|broken", (elsewhere / name / "index.html").read_text())
        for name in ("found1", "found2")
    ]
    assert rows[0] == rows[1]

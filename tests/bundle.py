"""Running the bundle from tests: in this process, or as a user does on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow

ROOT = Path(__file__).resolve().parents[1]


def graph(*names: str | Path, **settings: Any) -> ConfigParser:
    """Graphs of ``configs`` laid over each other, or other files, on the CPU."""
    files = [str(ROOT / "configs" / f"{name}.json") if isinstance(name, str) else str(name) for name in names]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({"bundle_root": str(ROOT), "device": "cpu", **settings})
    parser.parse()
    return parser


def run_inference(source: Path, output: Path, **overrides: Any) -> None:
    """Run the inference graph in this process."""
    workflow = ConfigWorkflow(
        str(ROOT / "configs" / "inference.json"),
        workflow_type="inference",
        logging_file=str(ROOT / "configs" / "logging.conf"),
        bundle_root=str(ROOT),
        input=str(source),
        output_dir=str(output),
        **overrides,
    )
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def python(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, in a working folder.

    On one thread: the tests' networks are too small for more, and times no longer depend on what else runs.
    """
    return subprocess.run(
        [sys.executable, "-W", "ignore", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def command(
    *arguments: str, launcher: tuple[str, ...] = (), folder: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle run …`` from the project's folder, by a launcher (module, options) if given."""
    line = ["-m", *launcher, *(["-m"] if launcher else []), "monai.bundle", "run", *arguments]
    return python(*line, folder=folder, **environment)


def nodules(output: Path, name: str) -> list[dict[str, Any]]:
    """The nodules of one scan's nodules.json."""
    return list(json.loads((output / name / "nodules.json").read_text(encoding="utf-8"))["nodules"])

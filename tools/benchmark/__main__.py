"""Command line: ``python -m tools.benchmark --option value …``; ``--help`` explains.

One scan is timed through everything; the tables are shown on the terminal and written to the page.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from scripts.core.commands import run_function
from scripts.core.errors import DataError, SettingError
from scripts.core.files import write_bytes
from scripts.infer.run import bundle_facts
from scripts.phantom.command import phantom
from scripts.read.discovery import find_scans
from scripts.search.inferer import choose_precision

from ..network.anatomy import NETWORKS
from .ceilings import PUBLISHED, PUBLISHED_PRECISION, cost_of, product_rate
from .page import filled_page, machine_facts, network_tables, scan_tables, scans_table
from .search import ROOT, graph, median_search

logger = logging.getLogger(__name__)

INFERENCE = "configs/inference.json"
SCANS = (1, 2, 4, 8)
MESSAGE_LINES = 5  # shown of a failed command
SEED = 3  # of the synthetic scan


def benchmark(
    *,
    input: str = "",
    config_file: Sequence[str] = (INFERENCE,),
    precision: Sequence[str] = ("auto",),
    device: str = "",
    repeats: int = 3,
    scans: bool = False,
    markdown: str = "",
) -> None:
    """Search one scan with the inference graph, time each of its components, and report what limits the network.

    In the same run, it measures how fast the machine multiplies matrices, and the published network on single tiles, as
    published. Seconds are medians after a warm-up. The number of threads is that of OMP_NUM_THREADS.

    Args:
        input: one scan, as the inference graph takes it; by default a synthetic chest of about 300 mm.
        config_file: the inference graph and what is laid over it, which is how other settings are measured.
        precision: one or several of auto, float32, bfloat16, float16.
        device: cpu, cuda, cuda:1; by default that of the graph.
        repeats: number of timed searches.
        scans: also time the whole command, including start-up, for 1, 2, 4 and 8 scans.
        markdown: page that receives the tables, between the marks for this kind of device.

    Raises:
        UserError: an option out of range, a precision that the device does not support, a refused scan, a page without
            marks.
    """
    if repeats < 1:
        raise SettingError(f"--repeats: expected a whole number from 1, got {repeats}")
    files = [str(ROOT / path if path == INFERENCE else Path(path).resolve()) for path in config_file]
    given = {"device": device} if device else {}
    parser = graph(files, **given)
    parser.get_parsed_content("network")  # fails on a missing device or wrong weights before minutes are spent
    where = torch.device(parser.get_parsed_content("device"))
    names = list(dict.fromkeys(str(choose_precision(one, where)).removeprefix("torch.") for one in precision))
    if markdown:
        filled_page(Path(markdown), where.type, "")
    with tempfile.TemporaryDirectory() as folder:
        if not input:
            phantom(folder, scans=1, seed=SEED, format="dicom")
        given["input"] = input or f"{folder}/images"
        if (found := len(find_scans(given["input"]))) != 1:
            raise DataError(f"--input {input}: expected one scan, found {found}; name one of them")
        blocks = _one_scan(parser, files, given, names, repeats)
        if scans:
            blocks += _several_scans(files, {**given, "precision": names[0]})
    command = shlex.join(["python", "-m", "tools.benchmark", *sys.argv[1:]])
    text = "\n\n".join([f"```\n{command}\n```", *blocks])
    logger.info("%s", text)
    if markdown:
        write_bytes(Path(markdown), filled_page(Path(markdown), where.type, text).encode())


def _one_scan(
    parser: ConfigParser, files: Sequence[str], given: Mapping[str, str], precisions: Sequence[str], repeats: int
) -> list[str]:
    """Search a scan in each precision, and time tiles; the speed of matrix products is measured in between."""
    device = torch.device(parser.get_parsed_content("device"))
    definitions = {name: ConfigParser.load_config_files(one)["network_def"] for name, one in NETWORKS.items()}
    own = next((name for name, one in definitions.items() if one == parser["network_def"]), "this network")
    definitions[own] = parser["network_def"]
    facts = machine_facts(device) | bundle_facts(str(ROOT), str(parser.get_parsed_content("checkpoint")))
    logger.info("searching %s in %s …", given["input"], ", ".join(precisions))
    searches = {name: median_search(files, repeats, **given, precision=name) for name in precisions}
    rates = {name: product_rate(device, name) for name in dict.fromkeys([*precisions, PUBLISHED_PRECISION])}
    compared = [(PUBLISHED, PUBLISHED_PRECISION), *((one, name) for one in (PUBLISHED, own) for name in precisions)]
    logger.info("timing tiles of %s and %s …", PUBLISHED, own)
    costs = []
    for name, precision in dict.fromkeys(compared):
        timed = graph(files, **given, network_def=definitions[name], checkpoint="")
        costs.append(cost_of(name, precision, timed, rates[precision], searches[precisions[0]]))
    return [*scan_tables(facts, rates, searches), *network_tables(costs, searches)]


def _several_scans(files: Sequence[str], given: Mapping[str, str]) -> list[str]:
    """Time the whole command for several numbers of scans."""
    logger.info("timing the whole command for %s scans …", ", ".join(map(str, SCANS)))
    words = [word for name, value in given.items() if name != "input" for word in (f"--{name}", value)]
    options = ["--config_file", str(list(files)), *words]
    return scans_table({count: time_command(given["input"], count, options) for count in SCANS})


def time_command(source: str, scans: int, options: Sequence[str]) -> float:
    """Return the wall time of the whole inference command for one scan that is listed ``scans`` times.

    Args:
        source: the scan.
        scans: how often it is listed.
        options: of the command line, besides input and output.

    Raises:
        DataError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "scans.json"
        listed.write_text(json.dumps([{"image": str(Path(source).resolve())}] * scans), encoding="utf-8")
        command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "inference", *options]
        begun = time.perf_counter()
        run = subprocess.run(
            [*command, "--input", str(listed), "--output_dir", str(Path(folder) / "results")],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begun
    if run.returncode:
        message = "\n".join(run.stderr.strip().splitlines()[-MESSAGE_LINES:])
        raise DataError(
            f"{' '.join(command)}: expected {scans} scans to be searched, got exit {run.returncode}: {message}"
        )
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status: 0, 1 if it failed, 2 if the command line is wrong."""
    return run_function(f"python -m {__package__}", benchmark, arguments)


if __name__ == "__main__":
    sys.exit(main())

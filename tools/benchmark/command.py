"""The benchmark: one scan through everything, as tables on the terminal and on the page."""

from __future__ import annotations

import logging
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.core.commands import OptionError
from scripts.core.errors import DataError
from scripts.core.files import write_bytes
from scripts.infer.run import bundle_facts
from scripts.read.reader import find_scans
from scripts.search.inferer import choose_precision

from ..network.anatomy import NETWORKS
from .ceilings import PUBLISHED, PUBLISHED_PRECISION, cost_of, product_rate
from .page import filled_page, machine_facts, network_tables, scan_tables, scans_table
from .search import ROOT, graph, median_search
from .whole import SCANS, synthetic, time_command

logger = logging.getLogger(__name__)

INFERENCE = "configs/inference.json"


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
    """Search one scan with the inference graph, time each of its components, and say what bounds the network.

    Beside it, in the same run: how fast the machine multiplies matrices, and the published network on single tiles,
    as published. Seconds are medians after a warm-up. Threads are those of OMP_NUM_THREADS.

    Args:
        input: one scan, as the inference graph takes it; default a synthetic chest of about 300 mm.
        config_file: the inference graph and what is laid over it: other settings are measured this way.
        precision: one or several of auto, float32, bfloat16, float16.
        device: cpu, cuda, cuda:1; default as in the graph.
        repeats: of the search.
        scans: also time the whole command, start included, for 1, 2, 4 and 8 scans.
        markdown: page that gets the tables, between the marks for this kind of device.

    Raises:
        UserError: an option out of range, a precision that the device has not, a refused scan, a page without marks.
    """
    if repeats < 1:
        raise OptionError(f"--repeats: expected a whole number from 1, got {repeats}")
    files = [str(ROOT / path if path == INFERENCE else Path(path).resolve()) for path in config_file]
    given = {"device": device} if device else {}
    parser = graph(files, **given)
    parser.get_parsed_content("network")  # a device that is not there, or wrong weights: before minutes are spent
    where = torch.device(parser.get_parsed_content("device"))
    names = list(dict.fromkeys(str(choose_precision(one, where)).removeprefix("torch.") for one in precision))
    if markdown:
        filled_page(Path(markdown), where.type, "")
    with tempfile.TemporaryDirectory() as folder:
        given["input"] = input or synthetic(Path(folder) / "scan")
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
    """Search a scan in each precision, and time tiles; the machine's rate of matrix products is measured in between."""
    device, published = torch.device(parser.get_parsed_content("device")), _definition_in(NETWORKS[PUBLISHED])
    own = next((name for name, one in NETWORKS.items() if _definition_in(one) == parser["network_def"]), "this network")
    facts = machine_facts(device) | bundle_facts(str(ROOT), str(parser.get_parsed_content("checkpoint")))
    logger.info("searching %s in %s …", given["input"], ", ".join(precisions))
    searches = {name: median_search(files, repeats, **given, precision=name) for name in precisions}
    rates = {name: product_rate(device, name) for name in dict.fromkeys([*precisions, PUBLISHED_PRECISION])}
    compared = [(PUBLISHED, PUBLISHED_PRECISION), *((one, name) for one in (PUBLISHED, own) for name in precisions)]
    logger.info("timing tiles of %s and %s …", PUBLISHED, own)
    costs = []
    for name, precision in dict.fromkeys(compared):
        definition = published if name == PUBLISHED else parser["network_def"]
        timed = graph(files, **given, network_def=definition, checkpoint="")
        costs.append(cost_of(name, precision, timed, rates[precision], searches[precisions[0]]))
    return [*scan_tables(facts, rates, searches), *network_tables(costs, searches)]


def _definition_in(files: Sequence[str]) -> Any:
    """The network of configuration files laid over each other, as it is written there."""
    return ConfigParser.load_config_files(files)["network_def"]


def _several_scans(files: Sequence[str], given: Mapping[str, str]) -> list[str]:
    logger.info("timing the whole command for %s scans …", ", ".join(map(str, SCANS)))
    words = [word for name, value in given.items() if name != "input" for word in (f"--{name}", value)]
    options = ["--config_file", str(list(files)), *words]
    return scans_table({count: time_command(given["input"], count, options) for count in SCANS})

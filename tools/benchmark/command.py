"""The benchmark: one scan through everything, and what the options add; a table, JSON, the page."""

from __future__ import annotations

import inspect
import json as json_format
import logging
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch

from scripts.core.commands import OptionError
from scripts.core.errors import DataError
from scripts.core.files import writable_folder, write_bytes
from scripts.read.reader import find_scans

from .machine import machine
from .networks import check_networks, precision_name
from .page import filled_page, report_text
from .report import scan_report
from .search import ROOT, graph
from .series import line_through, search_sizes, synthetic, time_command
from .training import train_steps

logger = logging.getLogger(__name__)

INFERENCE = "configs/inference.json"
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # accepted beside the inferer's own names
TRAINING_SCANS = 2
Number = TypeVar("Number", int, float)


def benchmark(
    *,
    input: str = "",
    config_file: Sequence[str] = (INFERENCE,),
    compare: Sequence[str] = ("paper", "compact"),
    precision: Sequence[str] = ("auto",),
    device: str = "",
    threads: int = 0,
    repeats: int = 3,
    scans: Sequence[str] = (),
    sizes: Sequence[str] = (),
    training: bool = False,
    workers: Sequence[str] = ("0", "1", "2"),
    steps: int = 30,
    dataset_dir: str = "",
    seed: int = 3,
    json: str = "",
    markdown: str = "",
) -> None:
    """Search one scan with the inference graph, time each of its components, and say what bounds the network.

    Beside it, in the same run: the machine's ceilings (matrix products, copies), and networks on single windows, the
    published network as published. Seconds are medians after a warm-up.

    Args:
        input: one scan, as the inference graph takes it; default a synthetic chest of about 300 mm.
        config_file: the inference graph and what is laid over it: other settings are measured this way.
        compare: networks timed on a few windows; paper in float32 with its published tiles is what
            all are held against.
        precision: one or several of auto, float32 (fp32), bfloat16 (bf16), float16 (fp16).
        device: cpu, cuda, cuda:1; default as in the graph.
        threads: of the CPU; default PyTorch's choice.
        repeats: of the search and of windows.
        scans: numbers of scans, such as 1 2 4 8: the whole command is timed for each.
        sizes: scales of synthetic bodies, from 0.35 to 1.2: how the cost grows with the lungs.
        training: time steps of the training graph as well.
        workers: of the training, each in turn.
        steps: of the training, measured.
        dataset_dir: to train on, see configs/train.json; default two synthetic scans.
        seed: of synthetic scans.
        json: file for all numbers.
        markdown: page that gets the tables, between the marks for this kind of device.

    Raises:
        UserError: an option out of range, an unknown network, a precision that the device has not, a refused scan,
            a page without marks.
    """
    command = command_line(benchmark, dict(locals()))
    counts, scales, crews = _numbers("scans", scans, 1), _sizes(sizes), _numbers("workers", workers, 0)
    _numbers("repeats", [repeats], 1), _numbers("threads", [threads], 0), _numbers("steps", [steps], 1)
    files = [str(ROOT / path if path == INFERENCE else Path(path).resolve()) for path in config_file]
    given = {"device": device} if device else {}
    with _threads(threads), tempfile.TemporaryDirectory() as folder:
        where, precisions = _ready(files, given, compare, precision)
        _check_outputs(json, markdown, where.type)
        source = input or str(synthetic(Path(folder) / "scan", seed))
        _check_one_scan(source)
        report = {"command": command, "device": where.type, "machine": machine(where), "synthetic": not input}
        report |= scan_report(files, {**given, "input": source}, precisions, compare, repeats)
        given["precision"] = precisions[0]
        if counts:
            report["scans"] = _scans(source, counts, files, given)
        if scales:
            report["sizes"] = [asdict(one) for one in search_sizes(scales, seed, files, repeats, **given)]
        if training:
            data = dataset_dir or str(synthetic(Path(folder) / "training", seed, scans=TRAINING_SCANS).parent)
            report["training"] = _training(data, crews, steps, device)
    _hand_over(report, json, markdown)


def _ready(
    files: Sequence[str], given: Mapping[str, Any], names: Sequence[str], precisions: Sequence[str]
) -> tuple[torch.device, list[str]]:
    """The device, and the precisions by the inferer's names; refuses what is not there before minutes are spent."""
    parser = graph(files, **given)
    parser.get_parsed_content("network")  # refuses a device that is not there, and wrong weights
    check_networks(names)
    where = torch.device(parser.get_parsed_content("device"))
    return where, list(dict.fromkeys(precision_name(SHORT.get(name, name), where) for name in precisions))


def _scans(source: str, counts: Sequence[int], files: Sequence[str], given: Mapping[str, str]) -> dict[str, Any]:
    """The whole command for several numbers of scans; three or more tell whether they lie on a line."""
    logger.info("timing the whole command for %s scans …", ", ".join(map(str, counts)))
    options = [
        "--config_file",
        str(list(files)),
        *(word for name, text in given.items() for word in (f"--{name}", text)),
    ]
    seconds = [time_command(source, count, options, torch.get_num_threads()) for count in counts]
    line = asdict(line_through(counts, seconds)) if len(set(counts)) > 2 else None
    return {"runs": [{"scans": n, "seconds": s} for n, s in zip(counts, seconds, strict=True)], "line": line}


def _training(dataset_dir: str, crews: Sequence[int], steps: int, device: str) -> list[dict[str, Any]]:
    logger.info("training a few steps with %s workers …", ", ".join(map(str, crews)))
    given = {"device": device} if device else {}
    return [asdict(train_steps(dataset_dir, crew, steps, **given)) for crew in crews]


def _hand_over(report: Mapping[str, Any], json: str, markdown: str) -> None:
    """Show the tables and write what was asked for."""
    text = report_text(report)
    logger.info("%s", text)
    if json:
        write_bytes(Path(json), (json_format.dumps(report, indent=1) + "\n").encode())
    if markdown:
        write_bytes(Path(markdown), filled_page(Path(markdown), report["device"], text).encode())


def command_line(command: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """What was typed, without what is the default anyway."""
    words = ["python", "-m", str(__package__)]
    for name, parameter in inspect.signature(command).parameters.items():
        value = options[name]
        listed = [str(one) for one in value] if isinstance(value, (list, tuple)) else [str(value)]
        if value != parameter.default:
            words += [f"--{name}", *([] if value is True else listed)]
    return shlex.join(words)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Compute with so many threads; 0: as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_one_scan(source: str) -> None:
    found = len(find_scans(source))
    if found != 1:
        raise DataError(f"--input {source}: expected one scan, found {found}; name one of them")


def _check_outputs(json: str, markdown: str, device: str) -> None:
    """Before minutes are spent: what will be written can be."""
    for path in (json, markdown):
        if path:
            writable_folder(Path(path).resolve().parent)
    if markdown:
        filled_page(Path(markdown), device, "")


def _sizes(texts: Sequence[str]) -> list[float]:
    try:
        sizes = [float(text) for text in texts]
    except ValueError:
        sizes = [0.0]
    if not all(0.35 <= size <= 1.2 for size in sizes):
        raise OptionError(f"--sizes: expected numbers from 0.35 to 1.2, got {' '.join(map(str, texts))}")
    return sizes


def _numbers(option: str, values: Sequence[Any], least: int) -> list[int]:
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        numbers = [least - 1]
    if min(numbers, default=least) < least:
        raise OptionError(f"--{option}: expected whole numbers from {least}, got {' '.join(map(str, values))}")
    return numbers

"""The command ``cross_validate``: trains and scores each fold of a cross-validation, then scores all folds together."""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from ..core.errors import SettingError, UserError
from ..core.files import read_record, writable_folder, write_bytes, write_json
from ..core.paths import CONFIGS
from .luna16 import luna16
from .tables import SERIES_COLUMN

logger = logging.getLogger(__name__)

TRAIN, EVALUATE = (str(CONFIGS / f"{name}.json") for name in ("train", "evaluate"))
# Files of each scored fold, in LUNA16's format.
SCORED = ("predictions.csv", "annotations.csv", "annotations_excluded.csv", "seriesuids.csv")
OWN_SETTINGS = ("datalists", "output_dir", "checkpoint", "val_interval")  # set by the command itself


def cross_validate(
    *,
    datalists: Sequence[str],
    output_dir: str,
    settings: Sequence[str] = (),
    devices: Sequence[str] = (),
    resamples: int = 1000,
) -> None:
    """Train and score each fold, then score all scans together by the rules of LUNA16.

    A fold is validated once, after its last epoch, so that it serves as a test: nothing is selected on it. Run the same
    command again to continue after a stop: an interrupted training is resumed, and scored folds are skipped.

    Args:
        datalists: one datalist (JSON) for each fold, with the sections training and validation.
        output_dir: folder for the results: a folder for each fold, named after its datalist, and all_folds with the
            scores of all.
        settings: settings of training and evaluation as NAME=VALUE: max_epochs=75 device=cuda:0 …
        devices: devices such as cuda:0 cuda:1 …, each of which runs one fold at a time; by default folds run one after
            the other.
        resamples: number of resamples of the bootstrap over scans; 0 for no intervals.

    Raises:
        UserError: a datalist is missing, two have the same name, a setting is invalid, the settings differ from those
            of the folds already there, or a fold fails.
    """
    folds = {Path(path).stem: Path(path).resolve() for path in datalists}
    missing = [str(path) for path in folds.values() if not path.is_file()]
    if len(folds) < len(datalists):
        raise SettingError(
            f"--datalists: expected a different file name for each fold, got {datalists}; rename the files"
        )
    if missing:
        raise SettingError(f"--datalists: expected files, found none at {', '.join(missing)}; check the paths")
    chosen = _parsed(settings)
    folder = writable_folder(output_dir).resolve()
    _same_settings(folder / "settings.json", chosen)
    _run_folds(folder, folds, chosen, devices)
    together = writable_folder(folder / "all_folds")
    for table in SCORED[1:]:
        write_bytes(together / table, _joined([folder / name / "scores" / table for name in folds]))
    luna16(
        results=[str(folder / name / "scores" / SCORED[0]) for name in folds],
        annotations=str(together / "annotations.csv"),
        excluded=str(together / "annotations_excluded.csv"),
        series_uids=str(together / "seriesuids.csv"),
        folds=[str(path) for path in folds.values()],
        output_dir=str(together),
        pool=True,
        resamples=resamples,
    )


def _run_folds(folder: Path, folds: Mapping[str, Path], settings: Mapping[str, str], devices: Sequence[str]) -> None:
    """Train and score the folds: one at a time on each device, or one after the other without any.

    Raises:
        UserError: a fold fails; folds that have started run to their end, the others do not start.
    """
    free: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
    places = [{"device": name} for name in devices] or [{}]
    for place in places:
        free.put(place)

    def run_fold(fold: tuple[str, Path]) -> None:
        place = free.get()
        try:
            _run_fold(folder / fold[0], fold[1], {**settings, **place})
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        done = [pool.submit(run_fold, fold) for fold in folds.items()]
        try:
            for future in as_completed(done):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_fold(folder: Path, datalist: Path, settings: Mapping[str, str]) -> None:
    """Train and score one fold, unless it has been scored already.

    Raises:
        UserError: training or evaluation failed.
    """
    scores = folder / "scores"
    if (scores / "froc.json").is_file():
        return
    started = time.monotonic()
    logger.info("fold %s", folder.name)
    _run("training", [TRAIN], {"output_dir": folder, "val_interval": "$@max_epochs"}, datalist, settings)
    weights = {"checkpoint": folder / "model.pt", "output_dir": scores}
    _run("evaluating", [TRAIN, EVALUATE], weights, datalist, settings)
    logger.info("%s: trained and scored in %.1f hours", folder.name, (time.monotonic() - started) / 3600)


def _parsed(settings: Sequence[str]) -> dict[str, str]:
    """Return the settings by name.

    Raises:
        SettingError: one is not NAME=VALUE, or is set by the command itself.
    """
    pairs = [setting.partition("=") for setting in settings]
    for name, sign, value in pairs:
        if not (name and sign and value) or name in OWN_SETTINGS:
            raise SettingError(
                "--settings: expected NAME=VALUE with a key of configs/train.json other than "
                f"{', '.join(OWN_SETTINGS)}, got {name + sign + value!r}; correct it"
            )
    return {name: value for name, _, value in pairs}


def _same_settings(path: Path, settings: Mapping[str, str]) -> None:
    """Record the settings of a cross-validation, and refuse to mix folds of different settings.

    Raises:
        SettingError: the settings recorded there are different.
    """
    if path.is_file() and read_record(path) != settings:
        raise SettingError(
            f"--settings: expected those of the folds already there ({path}), got {dict(settings)}; give the "
            "same, or another --output_dir"
        )
    write_json(path, dict(settings))


def _run(
    task: str, configs: Sequence[str], own: Mapping[str, object], datalist: Path, settings: Mapping[str, str]
) -> None:
    """Run a configuration of the bundle in a separate process.

    Args:
        task: "training" or "evaluating".
        configs: the configuration files.
        own: settings of this command.
        datalist: the fold's datalist.
        settings: the user's settings.

    Raises:
        UserError: the process failed; its output says why.
    """
    options = {"config_file": str(list(configs)), "datalists": str([str(datalist)]), **own, **settings}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", task, *words], cwd=CONFIGS.parent, check=False
    )
    if result.returncode:
        raise UserError(
            f"{datalist}: expected the {task} of this fold to succeed, got exit status {result.returncode}; see its "
            "output above. Correct the cause and run the same command again: what is finished is kept."
        )


def _joined(tables: Sequence[Path]) -> bytes:
    """Join several CSV files; their header, if they have one, is written once."""
    lines = [line for table in tables for line in table.read_text(encoding="utf-8").splitlines()]
    headers = [line for line in lines if line.startswith(f"{SERIES_COLUMN},")]
    return "\n".join([*headers[:1], *(line for line in lines if line not in headers), ""]).encode()

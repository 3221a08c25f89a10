"""Runs GDCM, which decodes JPEG in DICOM, in separate processes.

A damaged JPEG can crash GDCM with a segmentation fault, and its codecs write to stderr, which all threads share. It
therefore runs in processes of its own without a terminal, where a crash does not end this process. Run as a program,
this file is such a process: it decodes the given files one after the other, each to a ``.npy`` file beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PROCESSES = 4  # at most; more do not help, as the disk is the limit
START_S = 60.0  # time allowed for starting a process
SLICE_S = 1.0  # time allowed for each slice, which takes milliseconds


def decode_apart(slices: Sequence[Dataset]) -> list[npt.NDArray[Any] | None]:
    """Return the pixels of single-slice DICOM objects as decoded by GDCM; ``None`` for each that it cannot decode.

    If a slice crashes its process, the later slices of that process are ``None`` too.
    """
    with tempfile.TemporaryDirectory(prefix="slices-") as folder:
        files = [Path(folder) / f"{number}.dcm" for number in range(len(slices))]
        for one, file in zip(slices, files, strict=True):
            one.save_as(file, enforce_file_format=True)
        count = min(PROCESSES, os.cpu_count() or 1, len(files))
        processes = [_start(files[number::count]) for number in range(count)]
        for process in processes:
            try:
                process.wait(START_S + SLICE_S * len(files))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return [np.load(npy) if npy.exists() else None for npy in (file.with_suffix(".npy") for file in files)]


def _start(files: Sequence[Path]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", __file__, *map(str, files)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _decode(files: Sequence[str]) -> None:
    import SimpleITK as sitk

    for file in files:
        pixels = sitk.GetArrayFromImage(sitk.ReadImage(file, imageIO="GDCMImageIO"))
        partial = Path(file).with_suffix(".partial")
        with partial.open("wb") as stream:
            np.save(stream, pixels)
        partial.rename(Path(file).with_suffix(".npy"))


if __name__ == "__main__":
    _decode(sys.argv[1:])

"""Thousands of damaged headers: each gives a scan or one clear line, never a crash, a hang or excessive memory use.

``python -m tests.fuzz_headers --count 10000 --seed 0`` runs them in a separate process with a memory limit, and reports
those that end it. Case n of a seed is always the same; ``--first n --keep folder`` writes it to a folder.
"""

from __future__ import annotations

import collections
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import nibabel as nib
import numpy as np
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from scripts.core.commands import run_function
from scripts.core.errors import UserError
from scripts.read.discovery import find_scans
from scripts.read.reader import read_grid, read_scan
from tests.dicom_files import write_enhanced, write_series
from tests.image_files import AXIAL, chest, write_image

SECONDS = 5  # for one case, on a busy machine
MEMORY_BYTES = 8 << 30  # of address space, most of it PyTorch's libraries
ABSURD = ("0", "-1", "1", "3", "1e12", "1000000000000", "99999999999999999999", "nan", "inf", "1,4", "", "x", "0.0001")


# How each kind of scan is written into an empty folder.
KINDS: dict[str, Callable[[Path], object]] = {
    "dicom": lambda folder: write_series(folder, chest()[..., :4], AXIAL),
    "implicit": lambda folder: write_series(folder, chest()[..., :4], AXIAL, syntax=ImplicitVRLittleEndian),
    "deflated": lambda folder: write_series(folder, chest()[..., :4], AXIAL, syntax=DeflatedExplicitVRLittleEndian),
    "rle": lambda folder: write_series(folder, chest()[..., :4], AXIAL, syntax=RLELossless),
    "enhanced": lambda folder: write_enhanced(folder / "a.dcm", chest()[..., :4], AXIAL),
    "nii": lambda folder: write_image(folder / "a.nii", chest()),
    "nii.gz": lambda folder: write_image(folder / "a.nii.gz", chest()),
    "nii2": lambda folder: nib.save(nib.Nifti2Image(chest(), np.diag([0.7, 0.8, 1.5, 1.0])), folder / "a.nii"),
    "mha": lambda folder: write_image(folder / "a.mha", chest()),
    "mha packed": lambda folder: write_image(folder / "a.mha", chest(), compressed=True),
    "mhd": lambda folder: write_image(folder / "a.mhd", chest()),
    "nrrd": lambda folder: write_image(folder / "a.nrrd", chest()),
    "nrrd packed": lambda folder: write_image(folder / "a.nrrd", chest(), compressed=True),
    "nhdr": lambda folder: write_image(folder / "a.nhdr", chest()),
}
# Relative frequency of each kind, 1 by default.
CHANCES = {"dicom": 4, "implicit": 2, "enhanced": 3, "nii": 3, "rle": 0.1}


def _header_bytes(data: bytes) -> int:
    """Estimate the length of the header."""
    ends = [data.find(mark) for mark in (b"ElementDataFile", b"\n\n", b"\xe0\x7f\x10\x00")]
    return min([end + 16 for end in ends if end > 0] or [min(len(data), 544)])


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Return a file with one to three mutations, most of them in its header."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice((_flipped, _flipped, _number, _number, _cut, _words, _spliced))(data, rng)
    return data


def _flipped(data: bytes, rng: random.Random) -> bytes:
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 16)) if data else 0):
        result[rng.randrange(min(_header_bytes(data), len(data)))] ^= 1 << rng.randrange(8)
    return bytes(result)


def _number(data: bytes, rng: random.Random) -> bytes:
    """Replace a number in text."""
    places = list(re.finditer(rb"-?\d[\d.]*", data[: _header_bytes(data)]))
    if not places:
        return _words(data, rng)
    place = rng.choice(places)
    text = rng.choice(ABSURD).encode()
    if b"DICM" in data[:132]:  # lengths precede the values
        text = text[: len(place[0])].ljust(len(place[0]))
    return data[: place.start()] + text + data[place.end() :]


def _words(data: bytes, rng: random.Random) -> bytes:
    """Insert extreme binary numbers."""
    at = rng.randrange(max(min(_header_bytes(data), len(data)) - 8, 1))
    kind = rng.choice(("<i2", "<i4", "<i8", "<f4", "<f8", ">i2"))
    values = (0, 1, -1, 255, 32767, 1e9, 1e12) if kind[1] == "i" else (0.0, -1.0, np.nan, np.inf, 1e-30, 1e30)
    with np.errstate(all="ignore"):
        word = np.array(rng.choice(values)).astype(kind).tobytes()
    return data[:at] + word + data[at + len(word) :]


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _spliced(data: bytes, rng: random.Random) -> bytes:
    """Remove some bytes, or repeat them."""
    at = rng.randrange(min(_header_bytes(data), len(data)) + 1)
    length = rng.choice((1, 2, 8, 100))
    return data[:at] + data[at + length :] if rng.random() < 0.5 else data[: at + length] + data[at:]


def write_case(folder: Path, seed: int, number: int, originals: Path) -> str:
    """Write case ``number`` into an empty folder and return its kind."""
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(list(KINDS), [CHANCES.get(kind, 1) for kind in KINDS])[0]
    if not (originals / kind).exists():
        (originals / kind).mkdir(parents=True)
        KINDS[kind](originals / kind)
    shutil.copytree(originals / kind, folder, dirs_exist_ok=True)
    files = sorted(path for path in folder.iterdir() if path.suffix != ".raw" or rng.random() < 0.1)
    for path in files if rng.random() < 0.3 else [rng.choice(files)]:
        path.write_bytes(mutated(path.read_bytes(), rng))
    return kind


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def late(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {seconds} s")

    former = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def outcome(folder: Path, seconds: float = SECONDS) -> str:
    """Return "read" or "refused".

    Raises:
        AssertionError: what was read is impossible, or the refusal is not one clear line.
        Exception: anything but a :class:`UserError`; TimeoutError after ``seconds``.
    """
    with _limited(seconds):
        try:
            entries = find_scans(folder)
            volumes = [(read_grid(entry["image"]), read_scan(entry["image"])) for entry in entries]
        except UserError as error:
            if "\n" in str(error) or "expected" not in str(error):
                raise AssertionError(f"no clear line: {error}") from error
            return "refused"
    for grid, volume in volumes:
        assert volume.image_hu.shape == grid.shape
        assert volume.image_hu.size <= 8 * 1024  # no more than the files can contain
        assert np.isfinite(volume.affine_ras).all()
        np.testing.assert_array_equal(grid.affine_ras, volume.affine_ras)
    return "read"


def attempt(seed: int, number: int, scratch: Path) -> str:
    """Try one case below a scratch folder; return ``KIND: read`` or ``KIND: refused``.

    Raises:
        AssertionError: it does neither; the message gives its number.
    """
    folder = scratch / "case"
    kind = write_case(folder, seed, number, scratch / "originals")
    try:
        return f"{kind}: {outcome(folder)}"
    except Exception as error:
        raise AssertionError(f"case {number} of seed {seed} ({kind})") from error
    finally:
        shutil.rmtree(folder)


def run(seed: int, first: int, count: int) -> dict[str, int]:
    """Try cases one after another in this process; return how many were read and refused, by kind.

    Raises:
        AssertionError: for the first case that does neither.
    """
    with tempfile.TemporaryDirectory() as scratch:
        return collections.Counter(attempt(seed, number, Path(scratch)) for number in range(first, first + count))


# A process of its own for the cases, with a memory limit.
new_process = partial(
    ProcessPoolExecutor,
    max_workers=1,
    initializer=resource.setrlimit,
    initargs=(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES)),
)


def main(*, count: int = 10000, seed: int = 0, first: int = 0, keep: str = "") -> None:
    """Try cases in another process, which is restarted after a case that ends it.

    Args:
        count: number of cases.
        seed: of all cases.
        first: the number of the first case.
        keep: write only the first case, to this folder.

    Raises:
        UserError: cases failed.
    """
    counts: collections.Counter[str] = collections.Counter()
    slowest, bad, pool = 0.0, [], new_process()
    with tempfile.TemporaryDirectory() as scratch:
        if keep:
            print(write_case(Path(keep), seed, first, Path(scratch)))
            return
        for number in range(first, first + count):
            began = time.monotonic()
            try:
                counts[pool.submit(attempt, seed, number, Path(scratch)).result()] += 1
            except (Exception, SystemExit) as error:
                traceback.print_exception(error)
                bad.append(f"{number}: {error}")
                if isinstance(error, BrokenProcessPool):
                    pool = new_process()
                    shutil.rmtree(Path(scratch) / "case", ignore_errors=True)
            slowest = max(slowest, time.monotonic() - began)
    pool.shutdown()
    print("\n".join(f"{result:24} {number:6d}" for result, number in sorted(counts.items())))
    print(f"slowest case {slowest:.1f} s; {len(bad)} failed")
    if bad:
        raise UserError("\n".join(["expected a scan or one clear line, got neither:", *bad]))


if __name__ == "__main__":
    sys.exit(run_function("python -m tests.fuzz_headers", main))

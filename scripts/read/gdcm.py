"""GDCM, the decoder of compressed DICOM, in processes of its own.

A damaged JPEG can end it with a segmentation fault, and its codecs write to stderr, which belongs to all threads. So it
runs apart, without a terminal, and what becomes of it is the fault of one slice. Run as a program, this file is the
other side: it reads paths, one a line, and answers each with a line of JSON and the pixels.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from queue import SimpleQueue
from threading import Timer
from typing import Any

import numpy as np
import numpy.typing as npt

PATIENCE_S = 60.0  # for one slice, which takes milliseconds


class Decoders:
    """Processes that decode; started when they are needed, ended by :meth:`close`. Several threads may use them.

    Args:
        most: that run at once.
    """

    def __init__(self, most: int) -> None:
        self._idle: SimpleQueue[subprocess.Popen[bytes] | None] = SimpleQueue()
        self._most = most
        for _ in range(most):
            self._idle.put(None)

    def __call__(self, path: str) -> npt.NDArray[Any]:
        """The pixels of a DICOM file as GDCM gives them.

        Raises:
            ValueError: it cannot be decoded.
        """
        process = self._idle.get()
        try:
            if process is None or process.poll() is not None:
                process = _started()
            return _asked(process, path)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes; nothing may be decoded any more."""
        for _ in range(self._most):
            process = self._idle.get()
            if process is not None:
                process.kill()
                with suppress(OSError):  # of a pipe that broke with what was not yet written
                    process.communicate()


def _started() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def _asked(process: subprocess.Popen[bytes], path: str) -> npt.NDArray[Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    impatient = Timer(PATIENCE_S, process.kill)
    impatient.start()
    try:
        process.stdin.write(path.encode("utf-8", "surrogateescape") + b"\n")
        process.stdin.flush()
        head = json.loads(process.stdout.readline() or '{"error": "the decoder broke off"}')
        if "error" in head:
            raise ValueError(head["error"])
        pixels = np.dtype(head["dtype"])
        data = process.stdout.read(int(np.prod(head["shape"])) * pixels.itemsize)
        return np.frombuffer(data, pixels).reshape(head["shape"])
    except OSError as error:
        raise ValueError(f"the decoder broke off ({error})") from error
    finally:
        impatient.cancel()


def _serve() -> None:
    import SimpleITK as sitk

    for line in sys.stdin.buffer:
        pixels = np.zeros(0, dtype=np.uint8)
        try:
            path = line.rstrip(b"\n").decode("utf-8")
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO="GDCMImageIO"))
            head = {"shape": pixels.shape, "dtype": pixels.dtype.str}
        except Exception as error:
            head = {"error": (str(error).strip() or type(error).__name__).splitlines()[-1][:160]}
            pixels = np.zeros(0, dtype=np.uint8)
        sys.stdout.buffer.write(json.dumps(head).encode() + b"\n" + pixels.tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()

"""Whether the data that a MetaImage header names are all there, told by the size of the file alone."""

from __future__ import annotations

import math
from pathlib import Path

HEADER_BYTES = 65536  # far more than any header's text

_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}


def data_fault(path: Path) -> str:
    """Why the data of a ``.mhd`` header cannot be whole; empty where nothing speaks against it, or for other files.

    Data that are compressed or lie in several files, one a slice, can only be judged by reading them.
    """
    if path.suffix.lower() != ".mhd":
        return ""
    with path.open("rb") as file:
        lines = file.read(HEADER_BYTES).decode("latin-1").splitlines()
    header = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    name = header.get("ElementDataFile", "")
    if name in ("", "LOCAL", "LIST") or "%" in name:
        return ""
    data = path.parent / name
    if not data.is_file():
        return "the data file is not there"
    if header.get("CompressedData", "False").lower() == "true":
        return "" if data.stat().st_size else "the data file is empty"
    wanted = _BYTES.get(header.get("ElementType", ""), 0) * math.prod(int(n) for n in header["DimSize"].split())
    return "the data file is shorter than the header says" if data.stat().st_size < wanted else ""

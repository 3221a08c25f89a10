"""The bundle in the forms in which it is published: a zip for MONAI's model zoo, and a folder for a model hub.

Both contain what a run needs and none of the project's tests. MONAI unpacks the zip and runs it from there. The folder
for a hub has its model card at the root, with its own front matter, and the card's links still work.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.core.commands import run_command
from scripts.core.files import OutputError, writable_folder

ROOT = Path(__file__).resolve().parents[1]
NAME = "lung_nodule_ct_detection_segmentation"
PARTS = (
    "LICENSE",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "Dockerfile",
    "requirements.txt",
    "configs",
    "docs",
    "models",
    "scripts",
)
RELEASED = re.compile(r"models/[^/]+\.pt|(?!models/).*")  # exported networks belong to the user
CARD = Path("docs/README.md")
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the same files give the same zip
FRONT_MATTER = """---
license: apache-2.0
library_name: monai
pipeline_tag: image-segmentation
tags: [monai, medical, detection, segmentation, CT, lung, nodule]
---

"""

_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#]+)")


def zoo(*, output_dir: str = "dist") -> None:
    """Write ``NAME_vVERSION.zip``, as the model zoo hosts bundles: one folder with the name of the bundle.

    Args:
        output_dir: folder for the zip.

    Raises:
        OutputError: it cannot be written.
    """
    version = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
    path = writable_folder(output_dir) / f"{NAME}_v{version}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in released_files():
            entry = zipfile.ZipInfo(f"{NAME}/{file.as_posix()}", ZIP_TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, (ROOT / file).read_bytes(), zipfile.ZIP_DEFLATED)
    print(path)


def hub(*, output_dir: str = "dist") -> None:
    """Write the folder ``NAME``, as ``monai.bundle push_to_hf_hub --bundle_dir OUTPUT_DIR --name NAME`` uploads it.

    That command would copy ``docs/README.md`` over the card at the root and break its links. Here the card is at the
    root only, and the links of the other pages point to it.

    Args:
        output_dir: parent folder; it must not contain anything of that name.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """
    folder = writable_folder(output_dir) / NAME
    if folder.exists():
        raise OutputError(f"{folder}: expected nothing there, got an earlier folder; remove it, or choose another one.")
    for file in released_files():
        if file != CARD:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, folder / file)
    for page in (folder / "docs").glob("*.md"):
        page.write_text(page.read_text(encoding="utf-8").replace("](README.md", "](../README.md"), encoding="utf-8")
    card = _moved_links((ROOT / CARD).read_text(encoding="utf-8"))
    (folder / "README.md").write_text(FRONT_MATTER + card, encoding="utf-8")
    print(folder)


def released_files() -> Iterator[Path]:
    """Yield the files of the bundle, relative to its root."""
    for part in PARTS:
        whole = ROOT / part
        for path in [whole] if whole.is_file() else sorted(whole.rglob("*")):
            file = path.relative_to(ROOT)
            hidden = any(name.startswith((".", "__pycache__")) for name in file.parts)
            if path.is_file() and not hidden and RELEASED.fullmatch(file.as_posix()):
                yield file


def _moved_links(card: str) -> str:
    """Adapt the links of a page in ``docs/`` to its new place at the root."""
    return _LINK.sub(lambda link: link[1].removeprefix("../") if link[1][:3] == "../" else f"docs/{link[1]}", card)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 if it failed, 2 if the command line is wrong."""
    return run_command("tools.package", {"zoo": ".package:zoo", "hub": ".package:hub"}, arguments)


if __name__ == "__main__":
    sys.exit(main())

"""The zip for the model zoo, the folder for a hub, the wheel, the container: unpacked elsewhere, they are complete."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from unittest import mock

import monai.bundle.scripts
import pytest
import yaml
from monai.apps.utils import extractall
from monai.bundle import push_to_hf_hub, verify_net_in_out
from packaging.requirements import Requirement

from tests.bundle import ROOT, command, options, python, succeeded
from tests.ecosystem.stand_ins import FOLDER, needs
from tools import package
from tools.package import NAME, PARTS, main, released_files

ZOO_LIMIT_BYTES = 25_000_000


def links_to_nothing(bundle: Path) -> list[str]:
    """Links between files of which the other end is missing."""
    links = [
        (page, link)
        for page in sorted(bundle.rglob("*.md"))
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 50
    return [f"{page.relative_to(bundle)}: {link}" for page, link in links if not (page.parent / link).exists()]


def test_the_zip_runs_where_monai_unpacks_it(tmp_path: Path, small_data: Path) -> None:
    assert main(["zoo", "--output_dir", str(tmp_path / "dist")]) == 0
    (archive,) = (tmp_path / "dist").iterdir()
    assert re.fullmatch(rf"{NAME}_v\d+\.\d+\.\d+\.zip", archive.name)
    with zipfile.ZipFile(archive) as content:
        assert max(entry.file_size for entry in content.infolist()) < ZOO_LIMIT_BYTES
        assert not [name for name in content.namelist() if "__pycache__" in name or "/tests/" in name]
    extractall(archive, tmp_path / "bundles", has_base=True)
    bundle = tmp_path / "bundles" / NAME
    assert links_to_nothing(bundle) == []
    config, meta = str(bundle / "configs/inference.json"), str(bundle / "configs/metadata.json")
    verify_net_in_out("network_def", config_file=config, meta_file=meta, n=2, bundle_root=str(bundle))  # as the zoo
    places = options({"input": small_data / "images/phantom_0000.nii.gz", "output_dir": "found"})
    succeeded(command("inference", "--config_file", config, *places, folder=tmp_path))
    assert (tmp_path / "found/phantom_0000/report.html").exists()


# What the zoo's setup.cfg, pyproject.toml and runtests.sh say, and the exceptions of CONTRIBUTING.md.
ZOO_LINTERS = {
    "isort": "--check --profile black --line-length 120",
    "black": "--check --skip-magic-trailing-comma --line-length 120 -t py37 -t py38 -t py39",
    "flake8": "--isolated --max-line-length 120 --select B,C,E,F,N,P,T4,W,B9 "
    "--per-file-ignores __init__.py:F401,__main__.py:F401 "
    "--ignore E203,E501,E741,W503,W504,C408,N812,B023,B907,N813,N814",
}


@needs("black", "lint")
@pytest.mark.parametrize("linter", ZOO_LINTERS)
def test_the_zoos_linters_pass(linter: str) -> None:
    succeeded(python("-m", linter, *ZOO_LINTERS[linter].split(), "scripts", PYTHONPATH=str(FOLDER / "lint")))


def test_the_zoos_pre_commit_takes_every_file_but_the_weights() -> None:
    """At most 1 MB; text without blanks at the ends of lines, and with one end of line at its end."""
    contents = {file.as_posix(): (ROOT / file).read_bytes() for file in released_files()}
    assert [name for name, content in contents.items() if len(content) > 1024**2] == ["models/model.pt"]
    texts = {name: content for name, content in contents.items() if b"\0" not in content}
    assert [name for name, text in texts.items() if re.search(rb"[ \t]$", text, re.MULTILINE)] == []
    assert [name for name, text in texts.items() if text and not re.search(rb"[^\n]\n\Z", text)] == []


def test_hidden_files_compiled_ones_and_exported_networks_stay_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = ["models/model.pt", "scripts/a.py"]
    for name in [*kept, "docs/.cache/b.md", "models/model.ts", "scripts/__pycache__/a.pyc"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(package, "ROOT", tmp_path)
    assert [file.as_posix() for file in released_files()] == kept


def test_what_a_push_to_a_hub_would_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MONAI copies docs/README.md over the card where there is one, and breaks its links: there must be none."""
    assert main(["hub", "--output_dir", str(tmp_path)]) == 0
    folder = tmp_path / NAME
    hub = mock.MagicMock()  # in the place of its client
    monkeypatch.setattr(monai.bundle.scripts, "huggingface_hub", hub)
    push_to_hf_hub(repo="owner/name", name=NAME, bundle_dir=str(tmp_path))
    uploaded = Path(hub.HfApi().upload_folder.call_args.kwargs["folder_path"])
    sent = {path.relative_to(uploaded).as_posix() for path in uploaded.rglob("*") if path.is_file()}
    assert {"README.md", "LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt"} <= sent
    assert {name.split("/")[0] for name in sent} == {*PARTS, "README.md"}
    assert [name for name in sent if name == "docs/README.md" or re.search(r"/\.|__pycache__|\.(ts|onnx)$", name)] == []
    _, front, card = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert card.startswith("\n# Description\n")
    assert links_to_nothing(folder) == []
    assert not (ROOT / "docs/README.md").read_text(encoding="utf-8").startswith("---"), (
        "the zoo's card has no front matter"
    )
    assert main(["hub", "--output_dir", str(tmp_path)]) == 1  # what is there is not mixed with something new


def test_an_installation_brings_the_requirements_and_no_package(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "requirements.txt", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/__init__.py").touch()
    build = "from setuptools import build_meta; print(build_meta.build_wheel('wheel'))"
    succeeded(python("-c", build, folder=tmp_path))
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        assert [name for name in content.namelist() if not name.split("/")[0].endswith(".dist-info")] == []
        (metadata,) = (name for name in content.namelist() if name.endswith("/METADATA"))
        needed = re.findall(r"^Requires-Dist: (.*)$", content.read(metadata).decode(), re.MULTILINE)
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = {str(Requirement(line)) for line in lines if line and not line.startswith("#")}
    assert {str(Requirement(line)) for line in needed} == wanted


def test_the_steps_of_the_container(tmp_path: Path, small_data: Path) -> None:
    """Without docker: what is copied is there, and the entry point runs with two folders and no network."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sources = re.findall(r"^COPY (\S+) /opt/bundle/(\S+)$", text, re.MULTILINE)
    assert {"requirements.txt", "configs", "models", "scripts"} <= {target for _, target in sources}
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(kept) == sorted(source for source, _ in sources)
    for source, target in sources:
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, tmp_path / target)
    assert re.search(r"^USER (?!root|0\b)\S+$", text, re.MULTILINE)
    (entry,) = re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)
    (tmp_path / "images").mkdir()
    shutil.copy(small_data / "images/phantom_0001.nii.gz", tmp_path / "images")
    (tmp_path / "input").symlink_to(tmp_path / "images")
    places = {"/opt/bundle": str(tmp_path), "/input": str(tmp_path / "input"), "/output": str(tmp_path / "output")}
    words = json.loads(entry)[1:]
    for place, here in places.items():
        words = [re.sub(rf"^{place}(?=/|$)", here, word) for word in words]
    offline = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    (tmp_path / "elsewhere").mkdir()
    succeeded(python(*words, folder=tmp_path / "elsewhere", **offline))
    assert (tmp_path / "output/phantom_0001/report.html").is_file()

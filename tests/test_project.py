"""The project as a whole: files that must agree, make, and what the source tree may contain."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from monai.bundle import verify_metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = Path(os.environ.get("LUNG_NODULE_DATA", ROOT / "../shared/data"))
METADATA: dict[str, Any] = json.loads((ROOT / "metadata.json").read_text(encoding="utf-8"))
PUBLISHED_SCHEMA = SHARED_DATA / "meta_schema_equivalent.json"

MAKE_TARGETS = ("help", "demo", "test", "lint", "format", "package", "clean")


# --- metadata, versions, requirements ---------------------------------------------------------------------------------


def test_root_and_config_metadata_are_the_same_real_file() -> None:
    files = [ROOT / "metadata.json", ROOT / "configs/metadata.json"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not any(file.is_symlink() for file in files)  # MONAI's unzip turns links into text


def test_metadata_follows_the_rules() -> None:
    schema = ROOT / "tests/metadata_schema.json"
    md5 = hashlib.md5(schema.read_bytes()).hexdigest()  # without it MONAI warns that the file is not verified
    verify_metadata(meta_file=str(ROOT / "metadata.json"), filepath=str(schema), hash_val=md5)


@pytest.mark.skipif(not PUBLISHED_SCHEMA.exists(), reason=f"the restated MONAI schema is not at {PUBLISHED_SCHEMA}")
def test_metadata_follows_the_restated_schema_of_monai() -> None:
    jsonschema.validate(METADATA, json.loads(PUBLISHED_SCHEMA.read_text(encoding="utf-8")))


def test_the_output_is_a_whole_stride_of_the_input_and_holds_its_sub_voxels() -> None:
    image = METADATA["network_data_format"]["inputs"]["image"]
    pred = METADATA["network_data_format"]["outputs"]["pred"]
    assert (image["spatial_shape"], pred["spatial_shape"]) == (["16*n"] * 3, ["8*n"] * 3)
    assert pred["num_channels"] == 5 + 2**3
    for tensor in (image, pred):  # every channel is described exactly once
        assert list(tensor["channel_def"]) == [str(n) for n in range(tensor["num_channels"])]


def test_one_version_everywhere() -> None:
    version = METADATA["version"]
    changelog, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    assert re.findall(r"^## \[(\d[^\]]*)\]", changelog, flags=re.MULTILINE)[0] == version
    assert re.findall(r"^version: (\S+)$", citation, flags=re.MULTILINE) == [version]
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == version
    assert next(iter(METADATA["changelog"])) == version


def test_requirements_admit_the_versions_that_metadata_names() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    wanted = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    versions = {name: METADATA[key] for name, key in wanted.items()} | METADATA["required_packages_version"]
    named = {canonicalize_name(name): version for name, version in versions.items()}
    assert {canonicalize_name(pin.name) for pin in pins} == set(named)
    assert [str(pin) for pin in pins if named[canonicalize_name(pin.name)] not in pin.specifier] == []


# --- make -------------------------------------------------------------------------------------------------------------

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

# Replaces the Python of .venv: records how it was called; inference exits with FAKE_EXIT.
FAKE_PYTHON = """#!/bin/sh
log="$(dirname "$0")/calls"
printf 'call\\n' >> "$log"
for argument; do printf '%s\\n' "$argument" >> "$log"; done
for argument; do case "$previous" in --output_dir) mkdir -p "$argument" ;; esac; previous=$argument; done
case "$*" in *monai.bundle*) exit "${FAKE_EXIT:-0}" ;; esac
"""


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make in the project's folder, isolated from the make that runs the tests."""
    dropped = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "INPUT", "OUTPUT", "THRESHOLD", "VENV", "PYTHON"}
    clean = {k: v for k, v in os.environ.items() if k not in dropped}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A complete environment, from make's point of view, whose Python only records its calls."""
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON, encoding="utf-8")
    python.chmod(0o755)
    for stamp in (".runtime", ".dev"):
        (tmp_path / "venv" / stamp).touch()
    return tmp_path / "venv"


def calls(venv: Path) -> list[list[str]]:
    """Return the arguments of every call of the environment's Python."""
    text = (venv / "bin/calls").read_text(encoding="utf-8")
    return [call.split("\n")[:-1] for call in text.split("call\n")[1:]]


@needs_make
@pytest.mark.parametrize("target", MAKE_TARGETS)
def test_make_knows_and_explains_every_target(target: str) -> None:
    run = make("--dry-run", target)
    assert run.returncode == 0, run.stderr
    assert target == "help" or f"make {target} " in make("help").stdout


@needs_make
def test_demo_makes_a_scan_once_and_searches_it(venv: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for _ in range(2):
        assert make("demo", f"VENV={venv}", f"OUTPUT={output}").returncode == 0
    phantom, first, second = calls(venv)
    made = ["--output_dir", f"{output}/input", "--scans", "1", "--seed", "7", "--format", "dicom"]
    assert phantom == ["-m", "scripts.prepare", "phantom", *made]
    where = ["--input", f"{output}/input/images", "--output_dir", str(output), "--overwrite", "true"]
    search = ["-m", "monai.bundle", "run", "inference", "--config_file", "configs/inference.json"]
    assert first == second == [*search, *where]


@needs_make
@pytest.mark.parametrize("name", ["my scan", "it's 50% off", 'a "quoted" one', "1001"])
def test_demo_takes_any_folder_name_and_replaces_results_only_when_asked(name: str, venv: Path, tmp_path: Path) -> None:
    given = [f"VENV={venv}", f"INPUT={name}", f"OUTPUT={tmp_path / 'my results'}", "THRESHOLD=0.3"]  # absolute later
    for overwrite in ([], ["OVERWRITE=true"]):
        assert make("demo", *given, *overwrite).returncode == 0
    plain, asked = calls(venv)
    assert plain[6:] == [
        *("--input", str(ROOT / name)),
        *("--output_dir", str(tmp_path / "my results")),
        *("--threshold", "0.3"),
    ]
    assert [*plain[:-2], "--overwrite", "true", *plain[-2:]] == asked
    assert make("demo", *given, FAKE_EXIT="3").returncode != 0


@needs_make
def test_an_old_python_is_refused_with_one_message(tmp_path: Path) -> None:
    run = make("demo", f"VENV={tmp_path / 'venv'}", "PYTHON=false")
    assert run.returncode != 0
    assert 'Python 3.11 or newer is needed, "false" is not' in run.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_runs_the_test_command_of_the_readme_and_nothing_else() -> None:
    script = ROOT / ".ci/run"
    lines = [line.strip() for line in script.read_text(encoding="utf-8").splitlines()]
    assert [line for line in lines if line and not line.startswith(("#", "set ", "cd "))] == ["make test"]
    assert os.access(script, os.X_OK)
    assert "make test " in (ROOT / "README.md").read_text(encoding="utf-8")


# --- the tree ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree() -> list[Path]:
    """The files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this copy of the project is not a git checkout")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_text_names_a_path_of_one_machine(tree: list[Path]) -> None:
    pattern = re.compile(rb"/(?:home|root|work|tmp|Users)/|[A-Z]:\\Users")
    texts = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in tree if p.suffix not in {".pt", ".png", ".onnx"}}
    assert [name for name, text in texts.items() if b"\0" not in text and pattern.search(text)] == []

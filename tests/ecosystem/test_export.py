"""docs/export.md as it is written, from another folder: TorchScript and ONNX give what the network gives."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.bundle import ROOT, graph
from tests.ecosystem.conftest import Program

PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
LINES = re.findall(r"^python -m (monai\.bundle (\w+_export) .*)$", PAGE, re.MULTILINE)
COMMANDS = {name: words for words, name in LINES}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return graph("inference").get_parsed_content("network").eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def exported(program: Program, elsewhere: Path) -> Path:
    """The folder where both commands of the page have run, one after the other in one process."""
    start = "    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    program(code=f"import runpy, sys\nfor sys.argv in {[shlex.split(words) for words in COMMANDS.values()]}:\n{start}")
    return elsewhere


def test_torchscript(exported: Path, network: torch.nn.Module) -> None:
    image = torch.rand(1, 1, 32, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(exported / "model.ts")(image), network(image), atol=1e-3, rtol=1e-3)


def test_onnx_with_free_edges(exported: Path, network: torch.nn.Module) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    (image,), (pred,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape[2:], pred.name) == ("image", ["i", "j", "k"], "pred")
    example = torch.rand(1, 1, 32, 64, 48)  # not the edges of the export
    with torch.no_grad():
        expected = network(example).numpy()
    np.testing.assert_allclose(session.run(None, {"image": example.numpy()})[0], expected, atol=1e-3, rtol=1e-3)


def test_the_overlay_for_tensorrt_changes_nothing_without_a_gpu(network: torch.nn.Module, tmp_path: Path) -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "tensorrt.json").write_text(text, encoding="utf-8")
    laid = graph("inference", tmp_path / "tensorrt.json").get_parsed_content("network").eval()
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        assert torch.equal(laid(image), network(image))


def test_torch_compile_takes_the_network_as_one_graph(network: torch.nn.Module) -> None:
    """As it is traced, without the time that generating code takes."""
    image = torch.rand(1, 1, 32, 48, 32)
    with torch.no_grad():
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(image), network(image))

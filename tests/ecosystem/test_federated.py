"""Federated learning by MONAI's own client, as docs/monai.md shows it: rounds, the models it asks for, statistics."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from tests.bundle import ROOT
from tests.ecosystem.conftest import Program

PAGE = (ROOT / "docs" / "monai.md").read_text(encoding="utf-8")
ALGO, STATS = (
    code for code in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) if "monai.fl" in code
)
SMALL = '"epoch_length": 2, "batch_size": 1, "crop_size": 32, "num_workers": 0, "cache_workers": 0'

JOB = ALGO.replace('"epoch_length": 2', SMALL)

# A second round begins with other weights: their average must not remember those of the first round. Then a second job
# in the same folder, and statistics.
CODE = f"""
import os, warnings; warnings.simplefilter("ignore")
{JOB}
import torch
from monai.fl.utils.constants import ModelType
zeros = {{name: torch.zeros_like(value) for name, value in weights.weights.items()}}
algo.train(ExchangeObject(weights=zeros))
assert algo.trainer.state.epoch == 2
average = algo.train_workflow.parser.get_parsed_content("average").module
worst = max(float(value.abs().max()) for name, value in average.named_parameters())
print("AVERAGE", worst)
for kind in (ModelType.BEST_MODEL, ModelType.FINAL_MODEL):
    print("TENSORS", len(algo.get_weights({{ExtraItems.MODEL_TYPE: kind}}).weights))
algo.finalize()
written = {{path: os.stat(path).st_mtime_ns for path in ("runs/federated/model.pt", "runs/federated/model_final.pt")}}
{JOB}
print("SECOND JOB", algo.trainer.state.epoch, [os.stat(path).st_mtime_ns > time for path, time in written.items()])
{STATS}
print("KEYS", sorted(map(str, answer.statistics)), answer.statistics["train"]["fail_count"])
"""


def test_rounds_of_a_client_in_another_folder(program: Program, elsewhere: Path) -> None:
    result = program(code=CODE)
    assert "'val_cpm'" in result.stdout
    assert float(re.findall(r"^AVERAGE (\S+)", result.stdout, re.MULTILINE)[0]) < 0.01
    released = torch.load(ROOT / "models" / "model.pt", weights_only=True)
    assert re.findall(r"^TENSORS (\d+)", result.stdout, re.MULTILINE) == [str(len(released))] * 2
    assert "SECOND JOB 1 [True, True]" in result.stdout, "it begins anew, and its models replace those of the first"
    assert "KEYS ['eval', 'total_data', 'train'] 0" in result.stdout
    assert not (elsewhere / "runs/federated/state.pt").exists()

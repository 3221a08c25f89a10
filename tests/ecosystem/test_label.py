"""MONAI Label's own tasks on the bundle: ROIs for Slicer from a scan, a training from ROIs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bundle import ROOT
from tests.ecosystem.conftest import NAME, Program
from tests.ecosystem.stand_ins import beside, needs

ABSENT = (
    *("expiring_dict", "pydantic", "pydantic_settings", "itk", "nrrd", "skimage", "skimage.measure", "shapely"),
    *("shapely.geometry", "torchvision", "torchvision.utils"),
)

COMMANDS = re.search(r"^monailabel apps.*?(?=^```)", (ROOT / "docs" / "monai.md").read_text("utf-8"), re.M | re.S)
assert COMMANDS is not None
_APPS, MAKE, COPY, SERVER = map(shlex.split, COMMANDS[0].splitlines())
CONF = {SERVER[n + 1]: SERVER[n + 2] for n, word in enumerate(SERVER) if word == "--conf"}
APP = SERVER[SERVER.index("--app") + 1]

# What the server does for an inference request and for a training request.
CODE = f"""
{beside("monailabel", *ABSENT)}
import json, os, shutil
from monailabel.tasks.infer.bundle import BundleInferTask
from monailabel.tasks.train.bundle import BundleTrainTask
from monailabel.utils.others.generic import get_bundle_models
path = get_bundle_models(os.path.abspath({APP!r}), {CONF!r})["{NAME}"]
task = BundleInferTask(path, {{}})
assert task.is_valid()
request = {{"model": "{NAME}", "image": os.path.abspath("scan.nii.gz"), "device": "cpu"}}
shutil.copy(task(request)[0], "rois.json")
class Store:
    def datalist(self):
        pairs = json.load(open("data/datalist.json"))["training"]
        for number, item in enumerate(pairs):
            marks = [{{"center": box[:3], "size": box[3:]}} for box in item["box"]]
            json.dump({{"markups": marks}}, open(f"rois{{number}}.json", "w"))
        images = [os.path.abspath("data/" + item["image"]) for item in pairs]
        return [{{"image": image, "label": f"rois{{n}}.json"}} for n, image in enumerate(images)]
task = BundleTrainTask(path, {{}})
assert task.is_valid()
request = {{"model": "{NAME}", "device": "cpu", "max_epochs": 1, "val_split": 0.34, "tracking": "None"}}
for _ in range(2):
    task(request, Store())
"""


@needs("monailabel", "monailabel")
def test_label_infers_and_trains(program: Program, elsewhere: Path) -> None:
    for words in (MAKE, COPY):
        subprocess.run(words, cwd=elsewhere, check=True)
    bundle = elsewhere / APP / "model" / NAME
    quick = bundle / "configs" / "train.json"
    graph = json.loads(quick.read_text(encoding="utf-8"))
    graph |= {"epoch_length": 1, "batch_size": 1, "crop_size": 32, "num_workers": 0, "cache_workers": 0}
    graph["warmup_iterations"] = 0  # else the only step has a rate of 0
    quick.write_text(json.dumps(graph), encoding="utf-8")
    result = program(code=CODE)
    rois = json.loads((elsewhere / "rois.json").read_text(encoding="utf-8"))["markups"]
    assert {roi["coordinateSystem"] for roi in rois} == {"LPS"}
    truth = json.loads((elsewhere / "data/datalist.json").read_text(encoding="utf-8"))["validation"][0]["box"]
    apart_mm = [min(np.linalg.norm(np.subtract(roi["center"], box[:3])) for roi in rois) for box in truth]
    assert min(apart_mm) < 2.0, "no ROI lies at a nodule"
    assert result.stdout.count("training list: 2 scans") == 2
    trained, released = (_weights(bundle / part) for part in ("runs/train/model.pt", "models/model.pt"))
    changes = [float((trained[name] - value.float()).abs().max()) for name, value in released.items()]
    assert 0 < max(changes) < 0.5, "a training begins with the released weights, and changes them"


def _weights(path: Path) -> dict[str, Any]:
    state = torch.load(path, weights_only=True)
    return {name: value.float() for name, value in state.items() if value.is_floating_point() and "running" not in name}

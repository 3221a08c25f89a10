"""MONAI Deploy's own bundle operator: a volume in memory goes in, a mask of its shape comes out."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from tests.ecosystem.conftest import NAME, Program
from tests.ecosystem.stand_ins import beside, needs

# Holoscan's wheels need CUDA: its core is a stand-in here, and the operator's ports are called directly.
TRITON = ("tritonclient", "tritonclient.http", "tritonclient.grpc", "tritonclient.grpc.model_config_pb2")
CODE = f"""
{beside("deploy", *TRITON, "typeguard", "colorama")}
import importlib, os, types
import monai
monai.__path__.append(os.path.join(sys.path[-1], "monai"))
class Operator:
    def __init__(self, fragment, *args, **settings): pass
for name in ("holoscan", "holoscan.core", "holoscan.conditions", "holoscan.operators", "holoscan.resources",
             "holoscan.logger", "holoscan.executors", "holoscan.graphs", "holoscan.flow_graphs"):
    sys.modules[name] = mock.MagicMock(name=name, __all__=[])
core = sys.modules["holoscan.core"]
core.Operator = Operator
for name in ("Application", "Condition", "ConditionType", "Fragment", "OperatorSpec", "Resource"):
    setattr(core, name, type(name, (), {{}}))
core.__all__ = ["Operator", "Application", "Condition", "ConditionType", "Fragment", "OperatorSpec", "Resource"]
import nibabel as nib, numpy as np
package = types.ModuleType("monai.deploy.operators")
package.__path__ = [os.path.join(sys.path[-1], "monai/deploy/operators")]
sys.modules["monai.deploy.operators"] = package
from monai.deploy.core import Image, IOType
from monai.deploy.operators.monai_bundle_inference_operator import *
operator = MonaiBundleInferenceOperator(
    None, app_context=types.SimpleNamespace(models=None),
    input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
    output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
    bundle_path="bundles/{NAME}",
    bundle_config_names=BundleConfigNames("deploy#preprocessing", "deploy#postprocessing"),
)
scan = nib.load("scan.nii.gz")
meta = {{"spacing": scan.header.get_zooms(), "original_affine": scan.affine, "affine": scan.affine,
         "original_channel_dim": "no_channel"}}
class Ports:
    def receive(self, name): return Image(np.asarray(scan.dataobj), meta)
    def get(self, name): return None
    def emit(self, value, name): np.save(name, value)
operator.compute(Ports(), Ports(), None)
"""


@needs("monai/deploy", "deploy")
def test_the_operator_gives_a_mask_of_the_scans_shape(program: Program, elsewhere: Path, bundle: Path) -> None:
    config = f"bundles/{NAME}/configs"
    program(
        *("monai.bundle", "ckpt_export", "network_def", "--filepath", f"bundles/{NAME}/models/model.ts"),
        *("--config_file", f"{config}/inference.json", "--meta_file", f"{config}/metadata.json"),
        *("--ckpt_file", f"bundles/{NAME}/models/model.pt"),
    )
    program(code=CODE)
    scan = nib.load(elsewhere / "scan.nii.gz")
    (mask,) = np.load(elsewhere / "pred.npy")
    assert mask.shape == scan.shape
    command = ("run", "inference", "--config_file", f"{config}/inference.json", "--input", "scan.nii.gz")
    program("monai.bundle", *command, "--output_dir", "compared", "--precision", "float32")
    expected = np.asarray(nib.load(elsewhere / "compared" / "scan" / "mask.nii.gz").dataobj) > 0
    assert expected.any()
    # TorchScript forgets that tiles may be cut to what they cover, so borders of tiles lie elsewhere.
    assert 2 * ((mask > 0) & expected).sum() / ((mask > 0).sum() + expected.sum()) > 0.8

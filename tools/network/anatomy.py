"""What a network consists of, read from the network itself: its parts, the maps that flow between them, and their cost.

Parts are the network's direct children. The maps between them are read from the exported program, so that a table or
drawing made from them always shows the actual code.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.network.blocks import FuseUp, MultiDilation, ResidualBlock, SqueezeExcitation, SubCellHead, SubCellUp
from scripts.network.config import PAPER, TRAIN
from scripts.network.deformable_attention import DeformableEncoder
from scripts.network.paper import AddUp, LevelEncoder, LevelFusion

IMAGE, MAPS = "image", "maps"  # names of input and output
NETWORKS: dict[str, tuple[str, ...]] = {"compact": (TRAIN,), "paper": (TRAIN, PAPER)}  # the bundle's, by their graphs
EXPORT_SIZE = 32  # voxels along each axis; the smallest size with more than one cell at the coarsest stride
COUNT_SIZE = 96  # voxels along each axis; only the border's share depends on it
CORNERS = 8  # voxels that a trilinear sample multiplies and adds

GROUPS = {
    "stem and stages": ("stem", "stage"),
    "fusion of levels": ("fusion",),
    "deformable encoder": ("project", "encoder"),
    "decoder": ("up",),
    "heads": ("detect", "mask", "coarse"),
}


WORDS: dict[type[nn.Module], str] = {
    ResidualBlock: "residual block",
    SqueezeExcitation: "squeeze-excitation",
    nn.MaxPool3d: "maximum",
    FuseUp: "up, add, residual block",
    AddUp: "up, add, residual block",
    SubCellHead: "convolution 1³, sub-cells, add",
}


@dataclass(frozen=True)
class Link:
    """A map that flows from one part to another: voxels per cell, channels, and whether it exists in training only."""

    source: str
    target: str
    stride: int
    channels: int
    training_only: bool = False


@dataclass(frozen=True)
class Part:
    """A direct child of the network.

    Attributes:
        name: of the child.
        group: one of :data:`GROUPS`.
        text: what it does, in a few words.
        outputs: stride and channels of each map that leaves it, fine to coarse.
        parameters: their number.
        flops: per input voxel; see :func:`flops_per_voxel`.
    """

    name: str
    group: str
    text: str
    outputs: tuple[tuple[int, int], ...]
    parameters: int
    flops: float


@dataclass(frozen=True)
class Anatomy:
    """Parts and links of a network, both in the order in which they are computed."""

    parts: tuple[Part, ...]
    links: tuple[Link, ...]


def anatomy(build: Callable[[], nn.Module]) -> Anatomy:
    """Describe the network that ``build`` makes: ``[B, 1, I, J, K] -> [B, C, I/s, J/s, K/s]``."""
    network = build().eval()
    links = links_of(network)
    training = [link for link in links_of(build().train()) if link not in links]
    flops = flops_per_voxel(network)
    parts = []
    for name, child in network.named_children():
        outputs = {link.stride: link.channels for link in links if link.source == name}
        size = sum(parameter.numel() for parameter in child.parameters())
        parts.append(Part(name, group_of(name), words_for(child), tuple(sorted(outputs.items())), size, flops[name]))
    extra = [Link(a.source, a.target, a.stride, a.channels, True) for a in training if a.target != MAPS]
    return Anatomy(tuple(parts), (*links, *extra))


def group_of(name: str) -> str:
    """Return the group of a part by its name.

    Raises:
        ValueError: the part belongs to no group.
    """
    for group, starts in GROUPS.items():
        if name.startswith(starts):
            return group
    raise ValueError(f"part {name}: expected a name that starts as in GROUPS of {__name__}; give it a group there")


def links_of(network: nn.Module) -> list[Link]:
    """Return the maps that flow between a network's direct children in its current mode (evaluation or training)."""
    program = torch.export.export(network, (torch.zeros(2, 1, EXPORT_SIZE, EXPORT_SIZE, EXPORT_SIZE),))
    owner: dict[Any, str] = {}
    sources: dict[Any, set[Any]] = {}  # of each value, the outputs of parts (or the image) it is computed from
    links: dict[Link, None] = {}  # an ordered set
    for node in program.graph.nodes:
        if node.name in program.graph_signature.user_inputs:
            owner[node], sources[node] = IMAGE, {node}
            continue
        came = set().union(*(sources.get(before, set()) for before in node.all_input_nodes))
        part = MAPS if node.op == "output" else _child(node)
        for value in sorted(came, key=lambda value: value.name):
            if part and owner[value] != part and value.meta["val"].ndim == 5:
                shape = value.meta["val"].shape
                links[Link(owner[value], part, EXPORT_SIZE // shape[2], shape[1])] = None
        owner[node], sources[node] = part, {node} if part and came else came
    return list(links)


def _child(node: Any) -> str:
    """Return the direct child of the network in which a value is computed; empty for the network's own forward."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return paths[1].split(".")[0] if len(paths) > 1 else ""


def flops_per_voxel(network: nn.Module) -> dict[str, float]:
    """Return the floating-point operations per input voxel of each direct child.

    A multiply-add counts as 2. Convolutions, linear layers, trilinear upsampling and the trilinear samples of attention
    (8 multiply-adds per value) are counted. Normalisation, activations, additions of maps, pooling, softmax, and the
    weighting of what attention sampled are not.
    """

    def trilinear(*_: Any, out_shape: torch.Size, **__: Any) -> int:
        return 2 * CORNERS * math.prod(out_shape)

    readings = dict.fromkeys((torch.ops.aten.grid_sampler_3d, torch.ops.aten.upsample_trilinear3d), trilinear)
    twin = copy.deepcopy(network).to("meta")  # shapes without values: nothing is computed
    image = torch.zeros(1, 1, COUNT_SIZE, COUNT_SIZE, COUNT_SIZE, device="meta")
    with FlopCounterMode(display=False, custom_mapping=readings) as counter, torch.no_grad():
        twin(image)
    counts = counter.get_flop_counts()
    root = type(network).__name__
    return {
        name: sum(counts.get(f"{root}.{name}", {}).values()) / COUNT_SIZE**3 for name, _ in network.named_children()
    }


def words_for(module: nn.Module) -> str:
    """Say what a part does, in a few words.

    Raises:
        ValueError: the type of the part is unknown.
    """
    match module:
        case nn.Conv3d():
            return f"convolution {module.kernel_size[0]}³"
        case MultiDilation():
            reaches = [str(one.dilation[0]) for one in module.reach if isinstance(one, nn.Conv3d)]
            return "dilations " + ", ".join(reaches)
        case LevelFusion():
            return f"top-down sum, {words_for(module.mix[0])}"
        case LevelEncoder():
            return words_for(module.encoder)
        case DeformableEncoder():
            return f"{len(module.layers)} deformable layers"
        case SubCellUp():
            return f"sub-cells, join, {words_for(module.refine)}"
        case nn.Sequential():  # equal members are counted; norms and activations are left out
            counted = Counter(words_for(one) for one in module if not isinstance(one, nn.BatchNorm3d | nn.ReLU))
            return ", ".join(words if n == 1 else f"{n} × {words}" for words, n in counted.items())
    if type(module) in WORDS:
        return WORDS[type(module)]
    raise ValueError(f"{type(module).__name__}: expected a block that {__name__} knows; add words for it there")

"""The numbers of one scan, as they go into JSON and onto the page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from scripts.infer.run import bundle_facts

from ..network.anatomy import NETWORKS, flops_per_voxel
from .ceilings import Ceilings, ceilings
from .networks import PUBLISHED, PUBLISHED_PRECISION, Cost, cost_of, definition_in, name_of, pairs
from .search import NETWORK, READING, ROOT, WINDOWS, Searched, graph, median_search
from .stopwatch import Stage

logger = logging.getLogger(__name__)


def scan_report(
    files: Sequence[str], settings: Mapping[str, Any], precisions: Sequence[str], names: Sequence[str], repeats: int
) -> dict[str, Any]:
    """Search a scan in each precision, and compare networks on its windows; the ceilings are measured in between.

    Args:
        files: the inference graph.
        settings: laid over it, ``input`` among them.
        precisions: names of number types.
        names: of networks, compared; the graph's own is, in any case.
        repeats: of searches and windows.
    """
    parser = graph(files, **settings)
    device, own = torch.device(parser.get_parsed_content("device")), name_of(files)
    compared = pairs([*names, own], precisions)
    logger.info("searching %s in %s …", settings["input"], ", ".join(precisions))
    searched = {name: median_search(files, repeats, **{**settings, "precision": name}) for name in precisions}
    about = searched[precisions[0]][1]
    limits = {name: ceilings(device, name) for name in dict.fromkeys([*precisions, *(name for _, name in compared)])}
    logger.info("timing windows of %s …", ", ".join(" in ".join(key) for key in compared))
    costs = {
        (name, number): cost_of(
            (name, number),
            graph(files, **{**settings, "checkpoint": "", "network_def": definition_in(NETWORKS.get(name, files))}),
            limits[number],
            about,
            repeats=repeats,
        )
        for name, number in compared
    }
    published = costs.get((PUBLISHED, PUBLISHED_PRECISION))
    flops = sum(flops_per_voxel(parser.get_parsed_content("network_def")).values())
    return {
        "model": {**bundle_facts(str(ROOT), str(parser.get_parsed_content("checkpoint"))), "network": own},
        "settings": {name: parser.get_parsed_content(name) for name in ("window_size", "window_overlap")},
        "repeats": repeats,
        "scan": {**asdict(about), "litres": about.litres},
        "ceilings": {name: asdict(limit) for name, limit in limits.items()},
        "searches": [
            {"precision": name, **search_report(stages, seen, flops, limits[name], published)}
            for name, (stages, seen) in searched.items()
        ],
        "compare": [
            {**asdict(cost), "times_published": _ratio(published, cost.seconds_per_litre)} for cost in costs.values()
        ],
    }


def search_report(
    stages: Mapping[str, Stage], about: Searched, flops: float, limit: Ceilings, published: Cost | None
) -> dict[str, Any]:
    """Shares, rates and ratios of one search.

    Args:
        stages: see :func:`.search.search`.
        about: likewise.
        flops: of the network, per voxel.
        limit: the machine's, in this precision.
        published: the network and tiles that the search is held against; without it the ratios are ``None``.
    """
    seconds = sum(stage.seconds for stage in stages.values())
    after_reading = sum(stage.seconds for name, stage in stages.items() if name not in READING)
    network = stages[NETWORK].seconds
    flop_per_s = flops * about.window_voxels / network
    return {
        "stages": [
            {
                "name": name,
                **asdict(one),
                "share": one.seconds / seconds,
                "mvoxel_per_s": one.voxels / one.seconds / 1e6,
            }
            for name, one in stages.items()
        ],
        "seconds": seconds,
        "seconds_after_reading": after_reading,
        "seconds_besides_network": after_reading - network - stages[WINDOWS].seconds,
        "peak_process_bytes": max(one.peak_process_bytes for one in stages.values()),
        "peak_cuda_bytes": max(one.peak_cuda_bytes for one in stages.values()),
        "flops_per_voxel": flops,
        "network_flop_per_s": flop_per_s,
        "matrix_share": flop_per_s / limit.flop_per_s,
        "network_seconds_per_litre": network / about.litres,
        "network_times_published": _ratio(published, network / about.litres),
        "seconds_per_litre_after_reading": after_reading / about.litres,
        "times_published_after_reading": _ratio(published, after_reading / about.litres),
    }


def _ratio(published: Cost | None, seconds_per_litre: float) -> float | None:
    return published.seconds_per_litre / seconds_per_litre if published else None

"""The tables: on the terminal, and on the page about performance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.core.errors import DataError

from ..network.describe import with_generated
from .networks import TILE, TILE_MARGIN

Report = Mapping[str, Any]
PARTS = {kind: f"<!-- from here to the end mark: measured on {kind} -->" for kind in ("cpu", "cuda")}
LITRE = "A litre of lung is a Mvoxel at 1 mm."


def filled_page(path: Path, device: str, text: str) -> str:
    """The page with what was measured on a kind of device replaced.

    Raises:
        DataError: no such page, or a device without a part in it.
        DescriptionError: a page without the marks.
    """
    if not path.is_file() or device not in PARTS:
        raise DataError(
            f"--markdown {path}: expected a page with marks for {', '.join(PARTS)}, got "
            f"{'none' if device in PARTS else f'measurements on {device}'}; begin with docs/performance.md"
        )
    return with_generated(path.read_text(encoding="utf-8"), text, path, PARTS[device])


def report_text(report: Report) -> str:
    """All tables of a report, in Markdown."""
    blocks = [f"```\n{report['command']}\n```", machine_table(report), scan_line(report)]
    for search in report["searches"]:
        blocks += [f"### Each stage, {search['precision']}", stage_table(search), stage_notes(search)]
    blocks += ["### The network against its ceilings", compare_table(report), compare_notes(report)]
    blocks += ["### The whole search against the published network", ratio_table(report), LITRE]
    for name, title, words in (
        ("scans", "### Several scans", scans_words),
        ("sizes", "### Lungs of several sizes", sizes_words),
        ("training", "### Training", training_words),
    ):
        if name in report:
            blocks += [title, words(report[name])]
    return "\n\n".join(blocks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> str:
    """A Markdown table that can be read as it is; the first column is text, the others are numbers or text too."""
    widths = [max(len(row[n]) for row in [head, *rows]) for n in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + (":" if numbers else "-") for width in widths[1:])]
    sides = [str.ljust, *[str.rjust if numbers else str.ljust] * (len(head) - 1)]
    lines = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def machine_table(report: Report) -> str:
    facts = {**report["machine"], **{f"model {name}": value for name, value in report["model"].items()}}
    for precision, limit in report["ceilings"].items():
        products, copies = limit["flop_per_s"] / 1e9, limit["bytes_per_s"] / 1e9
        facts[f"ceiling, {precision}"] = f"{products:.0f} GFLOP/s in matrix products, {copies:.1f} GB/s in copies"
    return table(["Measured on", ""], [[_named(name), _fact(name, value)] for name, value in facts.items()], False)


def _named(name: str) -> str:
    return name.removesuffix("_bytes")


def _fact(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / 2**30:.1f} GiB" if value else "not told"
    return (", ".join(value) or "none of those asked for") if isinstance(value, list) else str(value)


def scan_line(report: Report) -> str:
    scan, settings = report["scan"], report["settings"]
    field = [n * mm for n, mm in zip(scan["shape"], scan["spacing_mm"], strict=True)]
    return (
        f"{'A synthetic chest' if report['synthetic'] else 'A scan'} of {_times(scan['shape'])} voxels of "
        f"{_times(scan['spacing_mm'], '.2f')} mm ({_times(field, '.0f')} mm): "
        f"{scan['litres']:.2f} litres {'of lung' if scan['lungs_found'] else '(no closed lungs: what is searched)'}, "
        f"{_times(scan['box'])} voxels searched in {scan['windows']} windows of {_times(settings['window_size'])} that "
        f"overlap by {settings['window_overlap']:g}. Medians of {report['repeats']} after a warm-up."
    )


def stage_table(search: Report) -> str:
    cuda = search["peak_cuda_bytes"] > 0
    head = ["Stage", "s", "CPU s", "share", "Mvoxel/s", "peak process, MB", *["peak GPU, MB"] * cuda]
    rows = [
        [
            one["name"],
            f"{one['seconds']:.3f}",
            f"{one['cpu_seconds']:.3f}",
            f"{one['share']:.1%}",
            f"{one['mvoxel_per_s']:.1f}" if one["voxels"] else "–",
            _megabytes(one["peak_process_bytes"]),
            *[_megabytes(one["peak_cuda_bytes"])] * cuda,
        ]
        for one in search["stages"]
    ]
    memory = [_megabytes(search["peak_process_bytes"]), *[_megabytes(search["peak_cuda_bytes"])] * cuda]
    cpu = sum(one["cpu_seconds"] for one in search["stages"])
    return table(head, [*rows, ["all", f"{search['seconds']:.3f}", f"{cpu:.3f}", "100.0%", "–", *memory]])


def stage_notes(search: Report) -> str:
    return (
        f"After reading {search['seconds_after_reading']:.2f} s, of which all but the network and its windows take "
        f"{search['seconds_besides_network']:.2f} s. Voxels are those of the largest volume a stage takes or makes; "
        "the network's are those of its windows, overlaps included. Peaks are the whole process's while the stage runs."
    )


def compare_table(report: Report) -> str:
    head = [
        "Network",
        "window",
        "kFLOP/voxel",
        "s/window",
        "Mvoxel/s",
        "GFLOP/s",
        "of products",
        "of copies",
        "peak, MB",
    ]
    rows = []
    for cost in report["compare"]:
        voxels = cost["size"][0] * cost["size"][1] * cost["size"][2]
        rate = voxels / cost["window_seconds"]
        rows.append(
            [
                f"{cost['network']}, {cost['precision']}",
                _times(cost["size"]),
                f"{cost['flops_per_voxel'] / 1e3:.2f}",
                f"{cost['window_seconds']:.3f}",
                f"{rate / 1e6:.2f}",
                f"{rate * cost['flops_per_voxel'] / 1e9:.0f}",
                f"{cost['matrix_share']:.0%}",
                f"{cost['memory_share']:.0%}",
                _megabytes(cost["peak_cuda_bytes"] or cost["peak_process_bytes"]),
            ]
        )
    return table(head, rows)


def compare_notes(report: Report) -> str:
    bounds = [f"{cost['network']} in {cost['precision']}: {cost['bound']}" for cost in report["compare"]]
    return (
        "The shares are of the machine's rates of matrix products in the same precision and of copies, measured in the "
        "same run; for copies, each operation is taken to fetch its arguments and to store its result (caches make it "
        f"cheaper, so more than 100 % is possible). What bounds: {'; '.join(bounds)}. Operations are counted as in "
        "[network.md](network.md#what-it-costs)."
    )


def ratio_table(report: Report) -> str:
    head = ["What", "s per litre of lung", "times faster than published"]
    rows = [
        [
            f"{cost['network']}, {cost['precision']}: {cost['windows']} windows, "
            f"{cost['scan_voxels'] / 1e6:.1f} Mvoxel",
            f"{cost['seconds_per_litre']:.3f}",
            _ratio(cost["times_published"]),
        ]
        for cost in report["compare"]
    ]
    for one in report["searches"]:
        what = f"this search, {one['precision']}"
        per_litre = one["network_seconds_per_litre"], one["seconds_per_litre_after_reading"]
        rows.append([f"{what}, network", f"{per_litre[0]:.3f}", _ratio(one["network_times_published"])])
        rows.append([f"{what}, all after reading", f"{per_litre[1]:.3f}", _ratio(one["times_published_after_reading"])])
    return table(head, rows) + (
        f"\n\nPublished: the paper's network in float32, tiles of {TILE}³ with {TILE_MARGIN} voxels more on each side, "
        "over the whole field of view at 1 mm. A few windows of each network are timed, and multiplied; what makes the "
        "graph's network fast (memory format, folding) makes the published one fast too."
    )


def scans_words(scans: Report) -> str:
    rows = [[str(r["scans"]), f"{r['seconds']:.1f}", f"{r['seconds'] / r['scans']:.2f}"] for r in scans["runs"]]
    text = table(["scans", "s, whole command", "s per scan"], rows)
    line = scans["line"]
    if line is None:
        return text
    return text + (
        f"\n\n{line['start']:.1f} s to start and {line['each']:.2f} s a scan; no run is farther than {line['off']:.0%} "
        "from that line. Each command ran once, on the same scan listed so many times."
    )


def sizes_words(sizes: Sequence[Report]) -> str:
    rows = [
        [
            f"{one['scale']:g}",
            f"{one['litres']:.2f}",
            str(one["windows"]),
            f"{one['network_seconds']:.2f}",
            f"{one['seconds']:.2f}",
            f"{one['seconds'] / one['litres']:.2f}",
            _megabytes(one["peak_process_bytes"]),
        ]
        for one in sizes
    ]
    return table(["body", "litres of lung", "windows", "network, s", "all, s", "s per litre", "peak, MB"], rows)


def training_words(speeds: Sequence[Report]) -> str:
    rows = [
        [str(one["workers"]), f"{one['steps_per_s']:.2f}", f"{1 / one['steps_per_s']:.2f}", f"{one['waiting']:.1%}"]
        for one in speeds
    ]
    first = speeds[0]
    return table(["workers", "steps/s", "s a step", "waiting for crops"], rows) + (
        f"\n\n{first['steps']} steps of {first['batch_size']} crops of {first['crop_size']}³ voxels, after a warm-up."
    )


def _times(values: Sequence[float], form: str = "") -> str:
    return " × ".join(format(value, form) for value in values)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}" if size else "–"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"

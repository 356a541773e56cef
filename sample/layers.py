"""`maskgen layers`: what each block of a network does to the tokens of images, as a table, a plot and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.core.devices import pick_device
from maskgen.core.files import atomic, write_json
from maskgen.core.pixels import to_float
from maskgen.evaluation.probes.layers import LayerReport, LayerState, layer_states, report_layers

from .pictures import check_writable
from .probe_features import token_features

NUM, SHOWN = 64, 4
"""Test images that numbers are computed from, and those whose attention is drawn."""


def run(source: str, /, *, num: int = NUM, block: int = 0, output: str | None = None, device: str = "auto") -> str:
    """The table of a checkpoint's blocks.

    Args:
        source: a checkpoint of a generator of images whose network has features.
        num: test images to compute from.
        block: of the diffusion transformer that features are taken after; 0 is the middle one.
        output: folder for layers.json, layers.png and attention.png.
        device: where the network runs.

    Raises:
        UserError: a checkpoint without features, or an output that cannot be written.
    """
    folder = check_writable(output, ("",)) if output else None
    checkpoint = read_checkpoint(source)
    found = token_features(checkpoint, source, block, pick_device(device))
    split = checkpoint.recipe.build_data().split("test")
    rows = torch.linspace(0, len(split) - 1, min(num, len(split))).long().tolist()
    images = to_float(split.__getitems__(rows)[0]).to(pick_device(device))
    reports = report_layers(found.network, lambda: found.features(images))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "layers.json", {"checkpoint": source, "num": len(rows), "layers": [*map(asdict, reports)]})
        _write(folder / "layers.png", plot(reports))
        states = layer_states(found.network, lambda: found.features(images[:SHOWN]))
        figure = attention_maps(images[:SHOWN].cpu(), states, found.grid)
        if figure is not None:
            _write(folder / "attention.png", figure)
    return "\n".join(table(reports))


def table(reports: Sequence[LayerReport]) -> list[str]:
    """A line per block."""
    lines = [f"{'block':>5} {'coding rate':>12} {'compression':>12} {'nonzero':>8} {'entropy':>14} {'silenced':>16}"]
    for index, one in enumerate(reports, 1):
        compression = "-" if one.compression is None else f"{one.compression:.1f}"
        lines.append(
            f"{index:>5} {one.coding_rate:>12.1f} {compression:>12} {one.nonzero:>8.3f} {_range(one.entropy, 2):>14} "
            f"{_range(one.silenced, 4):>16}"
        )
    return [*lines, "entropy: of heads, 1 is uniform; silenced: change of the features without a head, least to most"]


def _range(values: Sequence[float], digits: int) -> str:
    return f"{min(values):.{digits}f}..{max(values):.{digits}f}" if values else "-"


def plot(reports: Sequence[LayerReport]) -> Figure:
    """Coding rate, compression and share of nonzero numbers against the block."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    place = range(1, len(reports) + 1)
    curves: dict[str, Callable[[LayerReport], float | None]] = {
        "coding rate (nats)": lambda one: one.coding_rate,
        "compression, MSSA's subspaces (nats)": lambda one: one.compression,
        "share of nonzero numbers": lambda one: one.nonzero,
    }
    for axes, (name, value) in zip(figure.subplots(1, 3), curves.items(), strict=True):
        axes.plot(place, [torch.nan if (y := value(one)) is None else y for one in reports], "o-")
        axes.set(xlabel="block", title=name, xticks=list(place))
        axes.grid(alpha=0.3)
    return figure


def attention_maps(images: Tensor, states: Sequence[LayerState], grid: tuple[int, int]) -> Figure | None:
    """Attention of the last block's heads beside each image (C, H, W): from the class token, or averaged over tokens.

    None for a network whose last mixer has no attention weights.
    """
    weights = states[-1].weights if states else None
    if weights is None:
        return None
    length = grid[0] * grid[1]
    prefix = weights.shape[-1] - length
    maps = (weights[:, :, 0] if prefix else weights.mean(2))[..., prefix:].unflatten(-1, grid).cpu()
    n, heads = maps.shape[:2]
    figure = Figure(figsize=(1.5 * (1 + heads), 1.5 * n), layout="constrained")
    for row, line in enumerate(figure.subplots(n, 1 + heads, squeeze=False)):
        image = images[row].movedim(0, -1)
        line[0].imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        for head in range(heads):
            line[1 + head].imshow(maps[row, head], cmap="magma")
            line[1 + head].set_title(f"head {head + 1}" if not row else "", fontsize=8)
        for axes in line:
            axes.set_axis_off()
    return figure


def _write(path: Path, figure: Figure) -> None:
    with atomic(path) as file:
        FigureCanvasAgg(figure).print_png(file)

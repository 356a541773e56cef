"""Plots of a benchmark: score against network evaluations and seconds, and over guidance."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

Row = Mapping[str, Any]


def plots(rows: Sequence[Row], floors: Mapping[str, float]) -> list[tuple[str, bytes]]:
    """Title and PNG of each plot there is something to show in."""
    if not rows:
        return []
    name = rows[0]["score"]["name"]
    costs = [("evaluations", "network evaluations a sample"), ("seconds", "seconds a sample")]
    found = [
        (f"{name} against {label}", _plot(rows, key, label, floors, _by_steps, is_log=True)) for key, label in costs
    ]
    if len({row["guidance"] for row in rows}) > 1:
        found.append((f"{name} over guidance", _plot(rows, "guidance", "guidance scale", floors, _by_guidance, False)))
    return found


def _by_steps(row: Row) -> str:
    return f"{row['checkpoint']}, {row['sampler']}, guidance {row['guidance']:g}"


def _by_guidance(row: Row) -> str:
    return f"{row['checkpoint']}, {row['sampler']}, {row['steps'] or 'own'} steps"


def _plot(
    rows: Sequence[Row], key: str, label: str, floors: Mapping[str, float], curve: Callable[[Row], str], is_log: bool
) -> bytes:
    figure = Figure((8, 5), layout="constrained")
    axes = figure.subplots()
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(curve(row), []).append((row[key], row["score"]["value"]))
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), "o-", label=name)
    for style, (name, value) in zip("-:" * len(floors), floors.items(), strict=False):
        axes.axhline(value, color="0.5", lw=1, ls="--" if style == "-" else ":", label=f"floor: {name}")
    if is_log:
        axes.set_xscale("log")
    axes.set(xlabel=label, ylabel=rows[0]["score"]["name"])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()

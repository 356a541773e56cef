"""Tables and plot of an experiment over arms and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskgen.files import atomic, write_json

Row = Mapping[str, Any]


def write_reports(directory: Path, summary: str, rows: Sequence[Row]) -> str:
    """report.json, report.md and distances.png in a directory; the table."""
    arms = [
        summarise([row for row in rows if row["arm"] == name]) for name in dict.fromkeys(row["arm"] for row in rows)
    ]
    table = "\n".join(_table(arms))
    write_json(directory / "report.json", {"summary": summary, "arms": arms, "runs": list(rows)})
    with atomic(directory / "report.md") as file:
        file.write(f"# {summary or 'Equal compute'}\n\n{table}\n\n![](distances.png)\n".encode())
    _plot(directory / "distances.png", rows)
    return table


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """An arm: mean over seeds of the last score, with its standard error where there are several; `errors` of failures.

    Only runs that came to their end count.
    """
    whole = [row for row in rows if "error" not in row and row["scores"]]
    values = [last_score(row)["value"] for row in whole]
    arm: dict[str, Any] = {"arm": rows[0]["arm"], "label": rows[0]["label"], "n_seeds": len(values)}
    arm["errors"] = [f"seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    if values:
        arm |= {"score": last_score(whole[0])["name"], "value": statistics.fmean(values)}
        for key in ("steps", "samples", "cpu_seconds", "macs_per_sample", "parameters"):
            arm[key] = statistics.fmean(row[key] for row in whole)
    if len(values) > 1:
        arm["standard_error"] = statistics.stdev(values) / len(values) ** 0.5
    return arm


def last_score(row: Row) -> Row:
    """The score of the last checkpoint with the most samples."""
    found: Row = max(row["scores"], key=lambda score: (score["step"], score["num"]))
    return found


def _table(arms: Sequence[Row]) -> Iterator[str]:
    names = {arm["score"] for arm in arms if "score" in arm}
    score = " / ".join(sorted(names)) or "score"
    yield f"| arm | {score} | seeds | CPU seconds | steps | samples seen | MACs a sample |"
    yield "|---|---|---|---|---|---|---|"
    for arm in arms:
        failures = f" ({len(arm['errors'])} failed)" if arm["errors"] else ""
        if "value" not in arm:
            yield f"| {arm['label']} | failed: {arm['errors'][0] if arm['errors'] else 'not scored'} | 0 | | | | |"
            continue
        error = f" ± {arm['standard_error']:.3f}" if "standard_error" in arm else ""
        yield (
            f"| {arm['label']} | {arm['value']:.3f}{error} | {arm['n_seeds']}{failures} | {arm['cpu_seconds']:,.0f} | "
            f"{arm['steps']:,.0f} | {arm['samples']:,.0f} | {arm['macs_per_sample'] / 1e6:,.1f} M |"
        )


def _plot(path: Path, rows: Sequence[Row]) -> None:
    """Distance against processor time, a line a run, a colour an arm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(row["arm"] for row in rows))}
    for row in sorted(rows, key=lambda row: min((score["value"] for score in row["scores"]), default=0)):
        colour, most = colours[row["arm"]], max((score["num"] for score in row["scores"]), default=0)
        points = sorted((one["cpu_seconds"] / 60, one["value"], one["num"]) for one in row["scores"])
        label = row["label"] if row["seed"] == 0 else None
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "-", color=colour, label=label, linewidth=1)
        for x, y, num in points:
            axes.plot(x, y, "*" if num == most else ".", color=colour, markersize=9)
    axes.set(xlabel="processor minutes of training", ylabel="distance (stars: with more samples, and annealed)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    if any(row["scores"] for row in rows):
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="best first")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        FigureCanvasAgg(figure).print_png(file)

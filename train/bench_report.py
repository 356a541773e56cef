"""Tables and plots of an experiment over arms and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskgen.core.files import atomic, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
PROBE = "linear_probe"


def write_reports(directory: Path, summary: str, rows: Sequence[Row]) -> str:
    """Write report.json, report.md and the possible plots to a directory; returns the table."""
    arms = [
        summarise([row for row in rows if row["arm"] == name]) for name in dict.fromkeys(row["arm"] for row in rows)
    ]
    table = "\n".join(_table(arms))
    write_json(directory / "report.json", {"summary": summary, "arms": arms, "runs": list(rows)})
    pictures = {"distances.png": _plot_over_time(rows), "pareto.png": _plot_trade(arms)}
    for name, figure in pictures.items():
        if figure is not None:
            _write_figure(directory / name, figure)
    shown = "".join(f"\n![]({name})\n" for name, figure in pictures.items() if figure is not None)
    with atomic(directory / "report.md") as file:
        file.write(f"# {summary or 'Equal compute'}\n\n{table}\n{shown}".encode())
    return table


def summarise(rows: Sequence[Row]) -> Row:
    """An arm over its seeds: `scores`, by name mean, standard error where there are several seeds, and their number.

    `score`, `value`, `standard_error` and `n_seeds` repeat the first. `errors` are those of failures. Only networks
    that came to the end of their training count.
    """
    whole = [row for row in rows if row["scores"] and "steps" in row]
    arm: dict[str, Any] = {"arm": rows[0]["arm"], "label": rows[0]["label"], "n_seeds": 0, "scores": {}}
    arm["errors"] = [f"seed {row['seed']}: {row['error']}" for row in rows if "error" in row]
    for name in dict.fromkeys(score["name"] for row in whole for score in row["scores"]):
        found = [score for row in whole if (score := last_score(row, name)) is not None]
        if found:
            arm["scores"][name] = _over_seeds([float(score["value"]) for score in found]) | {
                "key": found[0].get("key", "evaluate")
            }
    for name, first in list(arm["scores"].items())[:1]:
        arm |= {"score": name, **{key: value for key, value in first.items() if key != "key"}}
    if whole:
        for key in ("steps", "samples", "cpu_seconds", "macs_per_sample", "parameters"):
            arm[key] = statistics.fmean(row[key] for row in whole)
        arm["samples_per_second"] = arm["samples"] / arm["cpu_seconds"]
    return arm


def _over_seeds(values: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = {"value": statistics.fmean(values), "n_seeds": len(values)}
    if len(values) > 1:
        found["standard_error"] = statistics.stdev(values) / len(values) ** 0.5
    return found


def last_score(row: Row, name: str) -> Row | None:
    """The score of a name of the last checkpoint, with the most samples; None if it has none."""
    last = row.get("last_step", max(score["step"] for score in row["scores"]))
    found = [score for score in row["scores"] if score["step"] == last and score["name"] == name]
    return max(found, key=lambda score: score["num"], default=None)


def _table(arms: Sequence[Row]) -> Iterator[str]:
    names = list(dict.fromkeys(name for arm in arms for name in arm["scores"]))
    columns = ["arm", *names, "seeds", "CPU seconds", "steps", "samples seen", "MACs a sample", "samples a CPU second"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for arm in arms:
        failures = f" ({len(arm['errors'])} failed)" if arm["errors"] else ""
        if not arm["scores"]:
            reason = " ".join(arm["errors"][0].split()) if arm["errors"] else "not scored"
            yield f"| {arm['label']} | failed: {reason} | {'| ' * (len(names) - 1)}0 | | | | | |"
            continue
        cells = [_cell(arm["scores"].get(name)) for name in names]
        yield (
            f"| {arm['label']} | {' | '.join(cells)} | {arm['n_seeds']}{failures} | {arm['cpu_seconds']:,.0f} | "
            f"{arm['steps']:,.0f} | {arm['samples']:,.0f} | {arm['macs_per_sample'] / 1e6:,.1f} M | "
            f"{arm['samples_per_second']:,.1f} |"
        )


def _cell(score: Row | None) -> str:
    """A mean with its standard error, if there is one."""
    if score is None:
        return "-"
    return f"{score['value']:.3f}" + (f" ± {score['standard_error']:.3f}" if "standard_error" in score else "")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3, which="both")
    return figure, axes


def _plot_over_time(rows: Sequence[Row]) -> Figure | None:
    """Distance against CPU time, one line per run, one colour per arm; None if nothing was scored by `evaluate`."""
    lines = [(row, [one for one in row["scores"] if one.get("key", "evaluate") == "evaluate"]) for row in rows]
    first = next((scores[0]["name"] for _, scores in lines if scores), None)
    lines = [(row, [one for one in scores if one["name"] == first]) for row, scores in lines]
    if first is None:
        return None
    figure, axes = _figure(10, 5)
    colours = {name: f"C{index}" for index, name in enumerate(dict.fromkeys(row["arm"] for row in rows))}
    for row, scores in sorted(lines, key=lambda line: min((one["value"] for one in line[1]), default=0)):
        colour, most = colours[row["arm"]], max((one["num"] for one in scores), default=0)
        points = sorted((one["cpu_seconds"] / 60, one["value"], one["num"]) for one in scores)
        label = row["label"] if row["seed"] == 0 else None
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "-", color=colour, label=label, linewidth=1)
        for x, y, num in points:
            axes.plot(x, y, "*" if num == most else ".", color=colour, markersize=9)
    axes.set(xlabel="processor minutes of training", ylabel="distance (stars: with more samples, and annealed)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="best first")
    return figure


def _plot_trade(arms: Sequence[Row]) -> Figure | None:
    """The first score that is not a probe against the accuracy of a probe, one point per arm; None without both."""
    names = {name: score["key"] for arm in arms for name, score in arm["scores"].items()}
    probes = sorted((name for name in names if names[name] == "probe"), key=lambda name: not name.startswith(PROBE))
    others = [name for name in names if names[name] != "probe"]
    points = [arm for arm in arms if probes and others and {probes[0], others[0]} <= set(arm["scores"])]
    if not points:
        return None
    figure, axes = _figure(8, 5)
    for arm in points:
        x, y = arm["scores"][probes[0]], arm["scores"][others[0]]
        errors = {"xerr": x.get("standard_error"), "yerr": y.get("standard_error")}
        axes.errorbar(x["value"], y["value"], fmt="o", label=arm["label"], capsize=2, **errors)
    axes.set(xlabel=f"{probes[0]} (more is better)", ylabel=others[0])
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _write_figure(path: Path, figure: Figure) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        FigureCanvasAgg(figure).print_png(file)

"""Model cards: what a checkpoint is, how it was made, how it scored."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from maskgen.checkpoints.checkpoint import Checkpoint
from maskgen.core.terminal import markdown
from maskgen.recipes.schema import Recipe


def card(checkpoint: Checkpoint, name: str) -> str:
    """The model card: what it is, how it was made, how it scored."""
    info, recipe = checkpoint.info, checkpoint.recipe
    text = recipe.dump(is_brief=True).strip()
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"""---
library_name: maskgen
license: apache-2.0
tags: [maskgen, {recipe.task}]
---
# {markdown(name)}

{markdown(str(info.get("summary", recipe.summary)))}

* task: {recipe.task}; {_kind(checkpoint)}
{_origin(checkpoint)}{_below(checkpoint)}

{_table(info)}
{fence}yaml
{text}
{fence}
"""


def _origin(checkpoint: Checkpoint) -> str:
    """How it was trained, or which published files it was converted from."""
    info, recipe = checkpoint.info, checkpoint.recipe
    versions = markdown(f"(maskgen {info.get('maskgen', '?')}, torch {info.get('torch', '?')})")
    if "source" in info:
        source = info["source"]
        files = "".join(
            f"\n* SHA-256 of {markdown(name)}: {markdown(digest)}" for name, digest in source["sha256"].items()
        )
        return f"* converted from {markdown(source['name'])}, layout {markdown(source['layout'])} {versions}{files}"
    command = markdown(str(info.get("command", "maskgen train")))
    return (
        f"* trained by: {command}, at commit {markdown(str(info.get('commit') or 'unknown'))}\n"
        f"* trained for {checkpoint.step:,} steps of {recipe.train.batch_size} {_unit(recipe)} in "
        f"{_time(info)} on {markdown(str(info.get('device', '?')))} {versions}"
    )


def _below(checkpoint: Checkpoint) -> str:
    """What low-rank changes are added to."""
    base = checkpoint.info.get("base")
    if base is None:
        return ""
    model = checkpoint.recipe.model
    source = model.get("source") if isinstance(model, dict) else None
    name = base["source"] or source or "a network that was initialised in the run"
    return (
        f"\n* low-rank changes, added to the weights of {markdown(str(name))}, digest {markdown(base['digest'][:12])}"
    )


def _time(info: Mapping[str, Any]) -> str:
    processor = f" ({info['cpu_seconds']:,.0f} CPU seconds)" if "cpu_seconds" in info else ""
    return f"{info.get('seconds', 0) / 60:.0f} minutes{processor}"


def _kind(checkpoint: Checkpoint) -> str:
    if checkpoint.recipe.kind == "text":
        return f"text, trained on rows of {checkpoint.length} tokens"
    return f"images {checkpoint.image_shape}; classes: {markdown(', '.join(checkpoint.classes)) or 'none'}"


def _table(info: Mapping[str, Any]) -> str:
    """Scores where there are some, else the last validation."""
    if "scores" in info:
        rows = [
            f"| {markdown(one['name'])} | {markdown(one['of'])} | {_number(one['value'])} | {one['n_samples']:,} |"
            for one in info["scores"]
        ]
        return "\n".join(["| score | of | value | n |", "|---|---|---|---|", *rows, ""])
    rows = [f"| {markdown(key)} | {_number(value)} |" for key, value in dict(info.get("validation", {})).items()]
    return "\n".join(["| validation on held-out data | value |", "|---|---|", *rows, ""]) if rows else ""


def _number(value: float | str) -> str:
    return markdown(value) if isinstance(value, str) else f"{value:.4g}"


def _unit(recipe: Recipe) -> str:
    """What a training batch counts."""
    return "rows" if recipe.kind == "text" else "images"

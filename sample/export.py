"""`maskgen export`: a checkpoint to publish: weights, recipe, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maskgen.checkpoint import Checkpoint, copy_for_use, read_checkpoint
from maskgen.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def run(
    source: str,
    directory: str,
    dtype: str = "fp32",
    summary: str | None = None,
    report: str | None = None,
    **facts: Any,
) -> None:
    """Copy a checkpoint without its training state and write its card; `facts` are kept beside it.

    Raises:
        UserError: no such checkpoint, an unreadable report, or the directory is in use.
    """
    path = Path(directory).expanduser()
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{directory} is not an empty directory; choose another one")
    checkpoint = read_checkpoint(source)
    if report is not None:
        facts["scores"] = _scores(report)
    copy_for_use(checkpoint, path, DTYPES[dtype], summary=summary or checkpoint.recipe.summary, **facts)
    (path / "README.md").write_text(card(read_checkpoint(path), path.name), encoding="utf-8")


def _scores(report: str) -> list[dict[str, Any]]:
    """The numbers of a report of `maskgen evaluate`, the score first."""
    try:
        tree = json.loads(Path(report).read_text(encoding="utf-8"))
        entries = [tree["score"], tree["reconstruction_floor"], tree["train_floor"], *tree["others"]]
        return [{key: entry[key] for key in ("name", "of", "value", "n_samples")} for entry in entries if entry]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--report {report} is not a report of `maskgen evaluate`: {error}") from None


def card(checkpoint: Checkpoint, name: str) -> str:
    """The model card: what it is, how it was made, how it scored."""
    info, recipe = checkpoint.info, checkpoint.recipe
    return f"""---
library_name: maskgen
license: apache-2.0
tags: [maskgen, {recipe.task}]
---
# {name}

{info.get("summary", recipe.summary)}

* task: {recipe.task}; {_kind(checkpoint)}
* made by: `{info.get("command", "maskgen train")}`, at commit {info.get("commit") or "unknown"}
* trained for {checkpoint.step:,} steps of {recipe.train.batch_size} {"rows" if recipe.is_text else "images"} in \
{_time(info)} on {info.get("device", "?")} (maskgen {info.get("maskgen", "?")}, torch {info.get("torch", "?")})

{_table(info)}
```yaml
{recipe.dump(is_brief=True).strip()}
```
"""


def _time(info: Mapping[str, Any]) -> str:
    processor = f" ({info['cpu_seconds']:,.0f} processor seconds)" if "cpu_seconds" in info else ""
    return f"{info.get('seconds', 0) / 60:.0f} minutes{processor}"


def _kind(checkpoint: Checkpoint) -> str:
    if checkpoint.recipe.is_text:
        return f"text, trained on rows of {checkpoint.length} tokens"
    return f"images {checkpoint.image_shape}; classes: {', '.join(checkpoint.classes) or 'none'}"


def _table(info: Mapping[str, Any]) -> str:
    """Scores where there are some, else the last validation."""
    if "scores" in info:
        rows = [
            f"| {one['name']} | {one['of']} | {_number(one['value'])} | {one['n_samples']:,} |"
            for one in info["scores"]
        ]
        return "\n".join(["| score | of | value | n |", "|---|---|---|---|", *rows, ""])
    rows = [f"| {key} | {_number(value)} |" for key, value in dict(info.get("validation", {})).items()]
    return "\n".join(["| validation on held-out data | value |", "|---|---|", *rows, ""]) if rows else ""


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"

"""`maskgen export`: a checkpoint to publish: weights, recipe, card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from maskgen.checkpoints.card import card
from maskgen.checkpoints.checkpoint import copy_for_use, read_checkpoint
from maskgen.core.errors import UserError
from maskgen.core.files import local_path

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
    path = local_path(directory)
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

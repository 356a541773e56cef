"""`maskgen export`: a checkpoint to publish, in one of several formats."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from maskgen.checkpoints.adapters import required_base
from maskgen.checkpoints.card import card
from maskgen.checkpoints.checkpoint import MODEL, Checkpoint, copy_for_use, read_checkpoint, usable
from maskgen.checkpoints.filling import DTYPES
from maskgen.core.errors import UserError, first_line
from maskgen.core.files import local_path
from maskgen.core.registry import Registry

EXPORTERS: Registry[None] = Registry("format", home="maskgen.checkpoints:EXPORTERS")


def run(
    source: str,
    directory: str,
    format: str = "maskgen",
    dtype: str = "fp32",
    summary: str | None = None,
    report: str | None = None,
    **facts: object,
) -> None:
    """Write a checkpoint in a format without its training state; `facts` are kept beside it.

    Raises:
        UserError: no such checkpoint or format, an unreadable report, or the directory is in use.
    """
    path = local_path(directory)
    if path.exists() and (path.is_file() or any(path.iterdir())):
        raise UserError(f"{directory} is not an empty directory; choose another one")
    checkpoint = read_checkpoint(source)
    if report is not None:
        facts["scores"] = _scores(report)
    write = EXPORTERS.get(format)
    write(checkpoint, path, DTYPES[dtype], {"summary": summary or checkpoint.recipe.summary, **facts})


@EXPORTERS.register("maskgen")
def as_maskgen(checkpoint: Checkpoint, path: Path, dtype: torch.dtype, facts: dict[str, object]) -> None:
    """A checkpoint that `maskgen.load` reads: weights, recipe, tokenizer and a model card."""
    copy_for_use(checkpoint, path, dtype, facts)
    _write_card(path)


@EXPORTERS.register("adapter")
def as_adapter(checkpoint: Checkpoint, path: Path, dtype: torch.dtype, facts: dict[str, object]) -> None:
    """Low-rank changes alone; `maskgen.load` reads the weights below them from their source, which must be there.

    Raises:
        UserError: a checkpoint without such changes, or weights below them that are in its run directory only.
    """
    recipe = checkpoint.recipe
    if recipe.lora is None:
        raise UserError(f"{checkpoint.path} holds no low-rank changes; use --format maskgen")
    if not required_base(checkpoint.info.get("base"), checkpoint.path)["source"] and not recipe.is_pretrained:
        raise UserError(
            f"{checkpoint.path} holds changes of a network that was initialised in its run and is nowhere else; use "
            "--format maskgen, which adds them up"
        )
    copy_for_use(checkpoint, path, dtype, facts, adds_changes=False)
    _write_card(path)


@EXPORTERS.register("weights")
def as_weights(checkpoint: Checkpoint, path: Path, dtype: torch.dtype, facts: dict[str, object]) -> None:
    """The weights alone, model.safetensors, for code of another package."""
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in usable(checkpoint)[1].items()
    }
    save_file(tensors, path / MODEL, {"summary": str(facts["summary"])})


def _write_card(path: Path) -> None:
    (path / "README.md").write_text(card(read_checkpoint(path), path.name), encoding="utf-8")


def _scores(report: str) -> list[dict[str, object]]:
    """The numbers of a report of `maskgen evaluate`, the score first."""
    try:
        tree = json.loads(local_path(report).read_text(encoding="utf-8"))
        entries = [tree["score"], tree["reconstruction_floor"], tree["train_floor"], *tree["others"]]
        return [{key: entry[key] for key in ("name", "of", "value", "n_samples")} for entry in entries if entry]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--report {report} is not a report of `maskgen evaluate`: {first_line(error)}") from None

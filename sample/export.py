"""`maskgen export`: a checkpoint to publish: weights, recipe, card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from maskgen.checkpoint import Checkpoint, copy_for_use, read_checkpoint
from maskgen.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def run(source: str, directory: str, dtype: str = "fp32", summary: str | None = None, **facts: Any) -> None:
    """Copy a checkpoint without its training state and write its card; `facts` are kept beside it.

    Raises:
        UserError: no such checkpoint, or the directory is in use.
    """
    path = Path(directory).expanduser()
    if path.exists() and any(path.iterdir()):
        raise UserError(f"{directory} is not empty; choose another directory")
    checkpoint = read_checkpoint(source)
    copy_for_use(checkpoint, path, DTYPES[dtype], summary=summary or checkpoint.recipe.summary, **facts)
    (path / "README.md").write_text(card(read_checkpoint(path), path.name), encoding="utf-8")


def card(checkpoint: Checkpoint, name: str) -> str:
    """The model card: what it is, how it was made, how it scored."""
    info, recipe = checkpoint.info, checkpoint.recipe
    scores = "\n".join(f"| {key} | {value:.4g} |" for key, value in dict(info.get("validation", {})).items())
    shown = ", ".join(checkpoint.classes) or "none"
    return f"""---
library_name: maskgen
license: apache-2.0
tags: [maskgen, {recipe.task}]
---
# {name}

{info.get("summary", recipe.summary)}

* task: {recipe.task}; images {checkpoint.image_shape}; classes: {shown}
* trained for {checkpoint.step:,} steps of {recipe.train.batch_size} images in {info["seconds"] / 60:.0f} minutes \
on {info["device"]} (maskgen {info["maskgen"]}, torch {info["torch"]})

| validation on test images | value |
|---|---|
{scores}

```yaml
{recipe.dump().strip()}
```
"""

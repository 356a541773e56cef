"""`maskgen sample` of a checkpoint of several streams: pictures on disk, captions and labels in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskgen.core.errors import UserError
from maskgen.pipelines.joint import JointPipeline
from maskgen.pipelines.joint_output import ENDINGS, JointOutput

from .pictures import check_writable


def run(
    pipeline: JointPipeline,
    *,
    prompts: Sequence[str] = (),
    classes: Sequence[str] = (),
    picture: str | None = None,
    hole: Sequence[str] = (),
    output: str | None = None,
    scale: int | None = None,
    **choices: Any,
) -> str:
    """Sample and write; a line for each row and the path of the file.

    Args:
        pipeline: of the checkpoint.
        prompts: captions, with `_` for each token to generate.
        classes: labels by name or id.
        picture: file of a picture; alone it is described, segmented or classified.
        hole: regions of the picture that are generated; none keeps it whole.
        output: a sheet of the pictures (`.png`, `.jpg`, `.webp`), or `.jsonl`.
        scale: whole factor by which pictures of a sheet are enlarged.
        **choices: other arguments of a `JointPipeline`'s call.

    Raises:
        UserError: an option that the checkpoint or the output cannot use.
    """
    if hole and picture is None:
        raise UserError("--hole is of a picture: give --picture FILE")
    path = check_writable(output or "samples.png", ENDINGS)
    found = pipeline(
        prompt=list(prompts) or None,
        label=list(classes) or None,
        image=picture,
        hole=list(hole) or None,
        progress=None,
        **choices,
    )
    found.save(path, scale=scale)
    return "\n".join([*_lines(pipeline, found), str(Path(path))])


def _lines(pipeline: JointPipeline, found: JointOutput) -> list[str]:
    """Caption and class of each row, those there are."""
    lines = []
    for index in range(len(found.tokens)):
        parts = [] if found.captions is None else [found.captions[index]]
        parts += [] if found.labels is None else [pipeline.classes[found.labels[index]]]
        lines += [f"{index}: {', '.join(parts)}"] if parts else []
    return lines

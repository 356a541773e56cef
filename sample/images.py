"""`maskgen sample` of an image checkpoint: pictures on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from maskgen.pipelines.image import ImagePipeline
from maskgen.pipelines.outputs import ImageOutput
from maskgen.pipelines.sheet import IMAGE_ENDINGS, write_images

from .animate import Recorder, write_animation
from .pictures import check_writable

OPTIONS = {"prompts", "picture", "hole", "strength", "seed", "batch_size"}
"""Arguments of a call that are not the sampler's."""

MAX_COLUMNS = 20
"""Classes or prompts that have a column each; more are laid out in a square."""


def run(
    pipeline: ImagePipeline,
    *,
    num: int = 40,
    classes: Sequence[str] = (),
    output: str = "samples.png",
    animate: str | None = None,
    scale: int | None = None,
    **choices: Any,
) -> ImageOutput:
    """Sample and write: a sheet with a labelled column for each class.

    Args:
        pipeline: of the checkpoint.
        num: number of images.
        classes: names or ids, used in turn; none are all classes.
        output: a sheet (`.png`, `.jpg`, `.webp`), an `.npz`, or a folder.
        animate: file of an animation of the unmasking, `.gif` or `.png`.
        scale: whole factor by which images of a sheet are enlarged.
        **choices: other arguments of an `ImagePipeline`'s call, or with `sketch` of its `from_sketch`.

    Raises:
        UserError: a sampler, class or output that cannot be used; raised before anything is sampled.
    """
    path = check_writable(output, IMAGE_ENDINGS)
    film = check_writable(animate, (".gif", ".png")) if animate else None
    draw = _drawn_by(pipeline, choices)
    recorder = Recorder(pipeline.tokenizer, is_field=pipeline.generator.process is not None)

    def on_step(done: int, total: int, x_t: Tensor) -> None:  # noqa: ARG001 - an `OnStep`
        recorder.add(x_t, done)

    watcher = None if film is None else on_step
    result = draw(num=num, classes=list(classes) or None, progress=None, on_step=watcher, **choices)
    titles = _titles(pipeline, classes, choices.get("prompts") or ())
    n_columns = len(titles) if len(titles) <= min(num, MAX_COLUMNS) else 0
    write_images(path, result.pixels, result.labels, n_columns, titles if n_columns else (), scale)
    if film is not None:
        write_animation(film, recorder, result.pixels, n_columns)
    return result


def _drawn_by(pipeline: ImagePipeline, choices: Mapping[str, Any]) -> Callable[..., ImageOutput]:
    """What draws the samples; a sampler that the checkpoint cannot use is refused here, before anything is opened."""
    if "sketch" in choices:
        return pipeline.from_sketch
    pipeline.with_sampler(**{key: value for key, value in choices.items() if key not in OPTIONS})
    return pipeline


def _titles(pipeline: ImagePipeline, classes: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """What is sampled in turn: prompts, or classes by name."""
    if prompts or not pipeline.classes:
        return list(prompts)
    ids = pipeline.class_names.ids(list(classes) or None)
    return [pipeline.classes[label] if label >= 0 else "no class" for label in ids]

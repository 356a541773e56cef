"""`maskgen sample` of an image checkpoint: pictures on disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from tqdm import tqdm

from maskgen.pipelines.image import ImagePipeline, SampleOutput
from maskgen.tokenizers import ImageTokenizer

from .animate import Recorder, write_animation
from .pictures import check_writable, write_images


def run(
    pipeline: ImagePipeline,
    *,
    num: int = 40,
    classes: Sequence[str] = (),
    prompts: Sequence[str] = (),
    picture: str | None = None,
    hole: str = "center",
    seed: int = 0,
    output: str = "samples.png",
    animate: str | None = None,
    batch_size: int = 250,
    **choices: Any,
) -> SampleOutput:
    """Sample and write; `choices` are those of `Pipeline.with_sampler`.

    Raises:
        UserError: a sampler, class or output that cannot be used; known before anything is sampled.
    """
    path = check_writable(output, (".png", ".npz", ""))
    film = check_writable(animate, (".gif", ".png")) if animate else None
    pipeline.with_sampler(**choices)  # refuses what is no choice
    tokenizer = pipeline.generator.tokenizer
    assert isinstance(tokenizer, ImageTokenizer)
    recorder = Recorder(tokenizer, is_field=pipeline.generator.process is not None)
    with tqdm(unit="step", desc="sampling", dynamic_ncols=True, disable=None) as bar:

        def on_step(done: int, total: int, x_t: Tensor) -> None:
            bar.total = math.ceil(num / batch_size) * total
            bar.update()
            if film is not None:
                recorder.add(x_t, done)

        what: dict[str, Any] = {"prompts": prompts, "picture": picture, "hole": hole}
        result = pipeline(
            num, list(classes) or None, **what, seed=seed, batch_size=batch_size, on_step=on_step, **choices
        )
    is_every_class = not classes or any(name.lower() == "all" for name in classes)
    n_kinds = len(pipeline.classes) if is_every_class else 0
    n_kinds = len(prompts) or n_kinds
    n_columns = n_kinds if n_kinds <= min(num, 20) else 0
    write_images(path, result.pixels, result.labels, n_columns)
    if film is not None:
        write_animation(film, recorder, result.pixels, n_columns)
    return result

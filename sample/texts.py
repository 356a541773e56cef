"""`maskgen sample` of a text checkpoint: texts on the terminal or on disk."""

from __future__ import annotations

import math
import shutil
import sys
from typing import Any, TextIO

import click
from torch import Tensor

from maskgen.pipelines.outputs import TextOutput
from maskgen.pipelines.sheet import TEXT_ENDINGS
from maskgen.pipelines.text import TextPipeline

from .pictures import check_writable

OPTIONS = {"length", "new_tokens", "prompt", "infill", "messages", "seed", "batch_size"}
"""Arguments of a call that are not the sampler's."""

SNAPSHOTS = 10
"""How many steps are printed where the terminal cannot be drawn over."""


def run(
    pipeline: TextPipeline,
    *,
    num: int = 4,
    show_steps: bool = False,
    output: str | None = None,
    **choices: Any,
) -> TextOutput:
    """Sample and write.

    Args:
        pipeline: of the checkpoint.
        num: number of texts.
        show_steps: print the first text after each step.
        output: `.txt` or `.jsonl`; None prints the texts.
        **choices: other arguments of a `TextPipeline`'s call.

    Raises:
        UserError: a text, sampler or output that cannot be used; raised before anything is sampled.
    """
    path = check_writable(output, TEXT_ENDINGS) if output else None
    pipeline.with_sampler(**{key: value for key, value in choices.items() if key not in OPTIONS})  # refuses others
    screen = Screen(pipeline) if show_steps else None
    result = pipeline(
        num,
        progress=None if screen is None else False,
        on_step=None if screen is None else screen.show,
        **choices,
    )
    if path is not None:
        result.save(path)
        return result
    for index, (text, seed) in enumerate(zip(result.texts, result.seeds, strict=True), 1):
        click.echo(f"--- {index} of {num}, seed {seed}\n{printable(text)}" if num > 1 else printable(text))
    return result


class Screen:
    """Shows the first text of a batch after each step: in place in a terminal, some steps in turn elsewhere."""

    def __init__(self, pipeline: TextPipeline, stream: TextIO | None = None) -> None:
        self.decode = pipeline.tokenizer.decode
        self.stream = stream or sys.stdout
        self.width, self.height = shutil.get_terminal_size()
        self.n_drawn = 0

    def show(self, done: int, total: int, x_t: Tensor) -> None:
        """x_t (B, L) after `done` of `total` steps."""
        title, text = f"step {done} of {total}", printable(self.decode(x_t[0].cpu()))
        if self.stream.isatty():
            rows = [title, *wrapped(text, self.width)][
                : self.height - 1
            ]  # lines that scrolled out of view cannot be overwritten
            above = f"\x1b[{self.n_drawn}F\x1b[J" if self.n_drawn and done > 1 else ""
            self.stream.write(above + "\n".join(rows) + "\n")
            self.n_drawn = len(rows)
        elif done == 1 or done == total or done % math.ceil(total / SNAPSHOTS) == 0:
            self.stream.write(f"{title}\n{text}\n\n")
        self.stream.flush()


def printable(text: str) -> str:
    """The text with a box for every control character but newline and tab, which a terminal would execute."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\u25a1" for char in text)


def wrapped(text: str, width: int) -> list[str]:
    """The lines of a text in a terminal of this width."""
    return [line[at : at + width] for line in text.split("\n") for at in range(0, max(len(line), 1), width)]

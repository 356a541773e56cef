"""`maskgen sample` of a text checkpoint: texts on the terminal or on disk."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO

import click
from torch import Tensor
from tqdm import tqdm

from maskgen.core.files import atomic
from maskgen.pipelines.text import TextOutput, TextPipeline

from .pictures import check_writable

SNAPSHOTS = 10
"""How many steps are printed where the terminal cannot be drawn over."""


def run(
    pipeline: TextPipeline,
    *,
    num: int = 4,
    length: int | None = None,
    prompt: str | None = None,
    infill: str | None = None,
    show_steps: bool = False,
    seed: int = 0,
    output: str | None = None,
    batch_size: int = 32,
    **choices: Any,
) -> TextOutput:
    """Sample and write; `choices` are those of `Pipeline.with_sampler`.

    Raises:
        UserError: a text, sampler or output that cannot be used; known before anything is sampled.
    """
    path = check_writable(output, (".txt", ".jsonl")) if output else None
    pipeline.with_sampler(**choices)  # refuses what is no choice
    screen = Screen(pipeline) if show_steps else None
    with tqdm(unit="step", desc="sampling", dynamic_ncols=True, disable=True if show_steps else None) as bar:

        def on_step(done: int, total: int, x_t: Tensor) -> None:
            bar.total = math.ceil(num / batch_size) * total
            bar.update()
            if screen is not None:
                screen.show(done, total, x_t)

        result = pipeline(
            num, length, prompt=prompt, infill=infill, seed=seed, batch_size=batch_size, on_step=on_step, **choices
        )
    if path is not None:
        write_texts(path, result.texts, seed)
    else:
        for index, text in enumerate(result.texts):
            shown = printable(text)
            click.echo(f"--- {index + 1} of {num}, seed {seed + index}\n{shown}" if num > 1 else shown)
    return result


def write_texts(path: Path, texts: list[str], seed: int) -> None:
    """A `.txt` with a line between two texts, or a `.jsonl` of objects with `seed` and `text`."""
    if path.suffix == ".jsonl":
        lines = [json.dumps({"seed": seed + i, "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
        content = "\n".join(lines) + "\n"
    else:
        content = "\n\n----\n\n".join(texts) + "\n"
    with atomic(path) as file:
        file.write(content.encode())


class Screen:
    """Shows the first text of a batch as it resolves: drawn over in a terminal, some steps one by one elsewhere."""

    def __init__(self, pipeline: TextPipeline, stream: TextIO | None = None) -> None:
        self.decode = pipeline.tokenizer.decode
        self.stream = stream or sys.stdout
        self.width, self.height = shutil.get_terminal_size()
        self.n_drawn = 0

    def show(self, done: int, total: int, x_t: Tensor) -> None:
        """x_t (B, L) after `done` of `total` steps."""
        title, text = f"step {done} of {total}", printable(self.decode(x_t[0].cpu()))
        if self.stream.isatty():
            rows = [title, *wrapped(text, self.width)][: self.height - 1]  # what scrolled away cannot be drawn over
            above = f"\x1b[{self.n_drawn}F\x1b[J" if self.n_drawn and done > 1 else ""
            self.stream.write(above + "\n".join(rows) + "\n")
            self.n_drawn = len(rows)
        elif done == 1 or done == total or done % math.ceil(total / SNAPSHOTS) == 0:
            self.stream.write(f"{title}\n{text}\n\n")
        self.stream.flush()


def printable(text: str) -> str:
    """The text with a box for every control character but newline and tab: they would command the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\u25a1" for char in text)


def wrapped(text: str, width: int) -> list[str]:
    """The lines a terminal of this width makes of a text."""
    return [line[at : at + width] for line in text.split("\n") for at in range(0, max(len(line), 1), width)]

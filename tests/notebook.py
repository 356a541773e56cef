"""`python -m tests.notebook FILE`: run a notebook with less to do from top to bottom, without a kernel's process."""

from __future__ import annotations

import sys

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

LESS = {
    "01_first_samples": {"num=40": "num=8", "num=20": "num=4"},
    "02_text": {"pipeline(8, length=128": "pipeline(2, length=64"},
    "03_diffusion": {
        '"train.steps": 100': '"train.steps": 8',
        '"train.checkpoint_every": 100': '"train.checkpoint_every": 8',
    },
}
"""Notebook -> what stands there -> what is run."""


def cells(file: str, stem: str) -> list[str]:
    """The code cells of a notebook, with less to do."""
    found = [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    for old, new in LESS[stem].items():
        assert any(old in cell for cell in found), f"{stem}: {old} stands nowhere"
        found = [cell.replace(old, new) for cell in found]
    return found


def run(sources: list[str]) -> None:
    """Run cells and make every representation of what they show.

    Raises:
        Exception: what a cell raises.
    """
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    shell.display_formatter.active_types = shell.display_formatter.format_types
    for source in sources:
        shell.run_cell(source).raise_error()


if __name__ == "__main__":
    run(cells(sys.argv[1], sys.argv[2]))

"""Names from outside in cards, reports and paths; devices on the command line."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maskgen.checkpoints.card import card
from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.cli.commands import cli
from maskgen.core.errors import UserError
from maskgen.core.terminal import markdown
from maskgen.evaluation.report import Entry
from maskgen.recipes.load import parse_recipe
from maskgen.sample.report_table import table
from tests.tiny import GENERATOR, generator_checkpoint

Command = Callable[..., tuple[int, str, str]]


def test_a_card_shows_names_as_they_are_and_runs_nothing(tmp_path: Path) -> None:
    hostile = "a|b`</td><script>x</script>\x1b]0;t\x07[l](http://x)\n# h"
    generator_checkpoint(tmp_path / "c", summary=hostile + " ``````")
    stored = read_checkpoint(tmp_path / "c")
    info = {**stored.info, "classes": [hostile] * 10, "command": hostile, "scores": [
        {"name": hostile, "of": hostile, "value": hostile, "n_samples": 3}
    ]}  # fmt: skip
    page = card(replace(stored, info=info), hostile)
    text, _, recipe = page.partition("```")
    assert "\x1b" not in page
    assert recipe.startswith("````yaml\n")
    for mark in ("<", "|b", "`", "]("):
        assert not re.findall(rf"(?<!\\){re.escape(mark)}", text)
    assert [line for line in text.splitlines() if line.startswith("# ")] == [text.splitlines()[5]]
    names = r"a\|b\`\<"
    assert markdown(hostile).startswith(names)
    assert len(re.findall(r"(?<!\\)\|", next(line for line in text.splitlines() if line.startswith("| a")))) == 5


def test_a_report_has_the_cells_it_should_whatever_names_hold() -> None:
    hostile = "a|b<i>\n| c |"
    lines = table([(hostile, [Entry(hostile, "samples", 1.0, 3)])]).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3, 3, 3]
    assert not re.search(r"(?<!\\)<", "".join(lines))


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_the_command_line_takes_every_device_of_the_library(name: str) -> None:
    for command in ("train", "sample", "evaluate"):
        words = ["digits-maskgit", "--device", name]
        assert cli.commands[command].make_context(command, words, resilient_parsing=False).params["device"] == name


@pytest.mark.parametrize("name", ["cuda1", "cuda:x", "cuda:", "gpu", "CPU", "cuda:0:1"])
def test_an_unknown_device_is_refused_with_the_choices(command: Command, name: str) -> None:
    code, _, error = command("sample", "fashion-maskgit", "--device", name)
    assert code == 2
    assert f"unknown device {name!r}" in error
    assert "auto, cpu, cuda, mps, cuda:N" in error


def test_training_on_another_device_than_it_was_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    program = importlib.import_module("maskgen.train.program")
    monkeypatch.setattr(program, "pick_device", lambda name: torch.device("cuda", 1))
    monkeypatch.setattr(program, "pick_precision", lambda *_: "no")
    with pytest.raises(UserError, match=r"device cuda:1: training would run on cpu; set CUDA_VISIBLE_DEVICES=1"):
        program._accelerator(parse_recipe(GENERATOR), "cuda:1")


def test_names_of_files_that_are_no_text_are_scored_and_shown_escaped(
    command: Command, digits_judge: Path, tmp_path: Path
) -> None:
    folders = [os.fsencode(tmp_path) + b"/\xff-\x1b-" + name for name in (b"one", b"two")]
    rng = np.random.default_rng(0)
    for folder in folders:
        os.mkdir(folder)
        for number in range(3):
            path = os.fsdecode(folder + b"/\xfe%d.png" % number)
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
    code, out, error = command("fid", *map(os.fsdecode, folders), "--protocol", digits_judge, "--device", "cpu")
    assert code == 0, error
    assert "\x1b" not in out + error
    (tmp_path / "no-images").mkdir()
    os.rename(os.fsencode(tmp_path) + b"/no-images", os.fsencode(tmp_path) + b"/\xff")
    words = [os.fsdecode(os.fsencode(tmp_path) + b"/\xff"), os.fsdecode(folders[0])]
    code, _, error = command("fid", *words, "--protocol", digits_judge, "--device", "cpu")
    assert code == 2
    assert len(error.splitlines()) <= 3
    assert error.isascii()

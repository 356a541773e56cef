"""Texts on a terminal and on disk."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch

import maskgen
from maskgen.core.errors import UserError
from maskgen.pipelines.sheet import write_texts
from maskgen.pipelines.text import TextPipeline
from maskgen.sample import texts
from maskgen.sample.texts import Screen, wrapped


class Terminal(io.StringIO):
    """A stream that can be drawn over."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def pipeline(text_kinds: dict[str, Path]) -> TextPipeline:
    loaded = maskgen.load(str(text_kinds["mdlm"]), device="cpu")
    assert isinstance(loaded, TextPipeline)
    return loaded


def shown(stream: str, height: int = 100) -> list[str]:
    """What a terminal shows after a stream: lines, the cursor moved up and what is below deleted."""
    lines = [""]
    for up, text in re.findall(r"(?:\x1b\[(\d+)F\x1b\[J)|([^\x1b]+)", stream):
        if up:
            assert int(up) < height, "the cursor stops at the top"
            lines = [*lines[: len(lines) - 1 - int(up)], ""]
        else:
            first, *rest = text.split("\n")
            lines = [*lines[:-1], lines[-1] + first, *rest]
    return lines


def encoded(pipeline: TextPipeline, text: str) -> torch.Tensor:
    """(1, L), `_` masked."""
    mask_id = pipeline.tokenizer.vocab_size
    return torch.tensor([[mask_id if c == "_" else int(pipeline.tokenizer.encode(c)) for c in text]])


def test_a_terminal_is_drawn_over(pipeline: TextPipeline) -> None:
    stream = Terminal()
    screen = Screen(pipeline, stream)
    for done, text in enumerate(["___\n____", "l__\na_e_", "l1e\na_em"], start=1):
        screen.show(done, 3, encoded(pipeline, text))
    assert shown(stream.getvalue()) == ["step 3 of 3", "l1e", "a_em", ""]


def test_a_later_batch_is_drawn_below_the_first(pipeline: TextPipeline) -> None:
    stream = Terminal()
    screen = Screen(pipeline, stream)
    for done, text in [(1, "____"), (2, "poem"), (1, "____"), (2, "__of"), (3, "line")]:  # the first was done early
        screen.show(done, 3, encoded(pipeline, text))
    assert shown(stream.getvalue()) == ["step 2 of 3", "poem", "step 3 of 3", "line", ""]


def test_long_lines_and_long_texts_are_drawn_over_whole(
    pipeline: TextPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "5")
    monkeypatch.setenv("LINES", "4")
    stream = Terminal()
    screen = Screen(pipeline, stream)
    screen.show(1, 2, encoded(pipeline, "line 1 of"))
    screen.show(2, 2, encoded(pipeline, "line\n" * 30))
    screen.show(2, 2, encoded(pipeline, "line 2 of"))
    assert shown(stream.getvalue(), height=4) == ["step 2 of 2", "line ", "2 of", ""]


def test_steps_are_printed_one_by_one_where_nothing_can_be_drawn_over(pipeline: TextPipeline) -> None:
    stream = io.StringIO()
    screen = Screen(pipeline, stream)
    for done in range(1, 41):
        screen.show(done, 40, encoded(pipeline, "li_e"))
    assert "\x1b" not in stream.getvalue()
    steps = re.findall(r"step (\d+) of 40\nli_e\n", stream.getvalue())
    assert [int(step) for step in steps] == [1, *range(4, 41, 4)]


@pytest.mark.parametrize("text", ["", "\n", "abc", "abcd\n", "ab\n\nabcdefghi\nc"])
def test_wrapping_loses_nothing_and_fits(text: str) -> None:
    lines = wrapped(text, 4)
    assert "".join(lines) == text.replace("\n", "")
    assert max(map(len, lines)) <= 4
    assert len(lines) >= len(text.split("\n"))


def test_a_text_file_has_every_text_and_a_json_file_their_seeds(tmp_path: Path) -> None:
    found = ["naïve\n\nline", "", '"quoted"']
    write_texts(tmp_path / "t.txt", found, [5, 6, 7])
    assert (tmp_path / "t.txt").read_bytes().decode() == 'naïve\n\nline\n\n----\n\n\n\n----\n\n"quoted"\n'
    write_texts(tmp_path / "t.jsonl", found, [5, 6, 7])
    lines = (tmp_path / "t.jsonl").read_bytes().decode().splitlines()
    assert [json.loads(line) for line in lines] == [{"seed": 5 + i, "text": text} for i, text in enumerate(found)]
    assert "naïve" in lines[0]


def test_texts_are_printed_with_the_seed_that_makes_each(
    pipeline: TextPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    result = texts.run(pipeline, num=3, seed=7, batch_size=2)
    assert capsys.readouterr().out == "".join(f"--- {i + 1} of 3, seed {7 + i}\n{result.texts[i]}\n" for i in range(3))
    alone = texts.run(pipeline, num=1, seed=8)
    assert capsys.readouterr().out == alone.texts[0] + "\n"
    assert alone.texts[0] == result.texts[1]


def test_the_steps_shown_end_in_the_text(pipeline: TextPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    result = texts.run(pipeline, num=1, prompt="line", show_steps=True, sampler="first_hitting")
    out = capsys.readouterr().out
    assert re.findall(r"step (\d) of 12", out)[-1] == "8", "four of twelve tokens were given"
    assert out.count(result.texts[0]) == 2


@pytest.mark.parametrize("choice", ["on_step", "known", "source", "stpes"])
def test_what_is_no_choice_of_a_sampler_is_refused(pipeline: TextPipeline, choice: str) -> None:
    with pytest.raises(UserError, match=f"{choice}: unknown key"):
        texts.run(pipeline, **{choice: 3})


def test_an_output_that_cannot_be_written_is_known_before_anything_is_sampled(
    pipeline: TextPipeline, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"t\.png'.*\.txt, \.jsonl"):
        texts.run(pipeline, output=str(tmp_path / "t.png"), show_steps=True)

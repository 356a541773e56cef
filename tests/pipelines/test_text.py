"""The text pipeline: what a text depends on, what is given stays, every sampler on every kind of network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import maskgen
from maskgen.core.errors import UserError
from maskgen.core.traits import traits_of
from maskgen.pipelines.base import settings_of
from maskgen.pipelines.generator import Generator
from maskgen.pipelines.text import TextPipeline
from maskgen.samplers import SAMPLERS
from tests.tiny import KINDS, LENGTH


@pytest.fixture(scope="module")
def pipelines(text_kinds: dict[str, Path]) -> dict[str, TextPipeline]:
    return {kind: maskgen.load(str(path), device="cpu") for kind, path in text_kinds.items()}


@pytest.fixture
def pipeline(pipelines: dict[str, TextPipeline]) -> TextPipeline:
    return pipelines["mdlm"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_depends_on_its_own_seed_and_known_tokens_only(pipelines: dict[str, TextPipeline], kind: str) -> None:
    pipeline = pipelines[kind]
    known = torch.full((7, LENGTH), -1)
    for row in range(7):
        known[row, :row] = row
    many = pipeline(7, known=known, seed=5).tokens
    for row in (0, 3, 6):
        assert torch.equal(pipeline(1, known=known[row : row + 1], seed=5 + row).tokens[0], many[row])
    assert torch.equal(pipeline(7, known=known, seed=5, batch_size=2).tokens, many)
    free = pipeline(7, seed=5).tokens
    assert torch.equal(free[0], many[0]), "nothing is known of row 0"
    assert len(free.unique(dim=0)) == 7


def test_a_guided_text_depends_on_its_own_seed_only_and_scale_1_is_off(pipeline: TextPipeline) -> None:
    many = pipeline(5, prompt="line", guidance=3.0, seed=2)
    assert all(text.startswith("line") for text in many.texts)
    assert torch.equal(pipeline(1, prompt="line", guidance=3.0, seed=4).tokens[0], many.tokens[2])
    plain = pipeline(5, prompt="line", seed=2).tokens
    assert torch.equal(pipeline(5, prompt="line", guidance=1.0, seed=2).tokens, plain)
    assert not torch.equal(many.tokens, plain)
    assert not torch.equal(
        pipeline(5, infill="line ____ of", guidance=3.0).tokens, pipeline(5, infill="line ____ of").tokens
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_sampler_writes_with_every_kind_of_network(
    pipelines: dict[str, TextPipeline], kind: str, name: str
) -> None:
    pipeline = pipelines[kind]
    output = pipeline(2, prompt="line", sampler=name.replace("_", "-"))
    vocab_size = pipeline.tokenizer.vocab_size
    assert output.tokens.shape == (2, LENGTH)
    assert 0 <= int(output.tokens.min()) <= int(output.tokens.max()) < vocab_size
    assert all(text.startswith("line") and len(text) == LENGTH for text in output.texts)
    assert torch.equal(output.tokens, pipeline(2, prompt="line", sampler=name).tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_unchanged_and_length_is_kept(pipelines: dict[str, TextPipeline], kind: str) -> None:
    texts = pipelines[kind](3, 20, prompt="a poem, naïve").texts
    assert {text[:13] for text in texts} == {"a poem, naïve"}
    assert {len(text) for text in texts} == {20}


def test_an_infill_keeps_every_character_and_is_not_cut(pipeline: TextPipeline) -> None:
    infill = "line __ of a poem, na_ve and ___\n"
    for text in pipeline(3, infill=infill).texts:
        assert len(text) == len(infill) > LENGTH
        assert all(wanted in ("_", got) for wanted, got in zip(infill, text, strict=True))
    assert {len(text) for text in pipeline(2, 5, infill=infill).texts} == {len(infill)}
    assert {len(text) for text in pipeline(2, 50, infill=infill).texts} == {50}


def test_an_infill_that_ends_in_gaps_is_a_prompt(pipeline: TextPipeline) -> None:
    assert pipeline(2, infill="line ___").texts == pipeline(2, 8, prompt="line ").texts
    assert pipeline(2, 8, infill="line _").texts == pipeline(2, 8, prompt="line ").texts
    assert pipeline(2, prompt="").texts == pipeline(2).texts


def test_each_row_may_have_gaps_of_its_own(pipeline: TextPipeline) -> None:
    given = pipeline.tokenizer.encode("line 1 of a ")
    known = given.repeat(3, 1)
    known[0, 2:4], known[1, 9:], known[2, :] = -1, -1, -1
    tokens = pipeline(3, known=known).tokens
    assert torch.equal(tokens[known >= 0], known[known >= 0])
    assert torch.equal(pipeline(2, known=given[None]).tokens, given.repeat(2, 1)), "nothing was wanted"
    assert torch.equal(pipeline(2, known=known[1:2]).tokens, pipeline(2, known=known[[1, 1]]).tokens)


def test_text_behind_a_gap_is_heeded_by_a_bidirectional_network(pipeline: TextPipeline) -> None:
    first, second = (pipeline(8, infill="____" + ending, temperature=0.0, steps=1).texts for ending in ("poem", "line"))
    assert [text[:4] for text in first] != [text[:4] for text in second]


def test_a_network_that_writes_in_blocks_may_fill_gaps_of_one_block(pipelines: dict[str, TextPipeline]) -> None:
    assert all(text[:2] + text[3] == "lie" for text in pipelines["bd3"](2, infill="li_e").texts)


@pytest.mark.parametrize("kind", ["bd3", "ar"])
def test_text_after_a_gap_is_refused_by_a_network_that_writes_from_left_to_right(
    pipelines: dict[str, TextPipeline], kind: str
) -> None:
    with pytest.raises(UserError, match="cannot see text after a gap"):
        pipelines[kind](1, infill="l__________e")
    known = torch.full((2, LENGTH), -1)
    known[1, 5] = 0
    with pytest.raises(UserError, match="cannot see text after a gap"):
        pipelines[kind](2, known=known)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "line", "infill": "li_e"}, "a prompt or an infill, not both"),
        ({"infill": "line"}, "'line' has no gap"),
        ({"infill": ""}, "has no gap"),
        ({"prompt": "line 1 of a "}, "12 tokens and length is 12: nothing is left"),
        ({"prompt": "line", "length": 3}, "4 tokens and length is 3"),
        ({"prompt": "ξ"}, "no token for 'ξ'"),
        ({"infill": "ξ_"}, "no token for 'ξ'"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"length": 0, "prompt": "line"}, "length must be at least 1, got 0"),
        ({"length": -1, "infill": "_"}, "length must be at least 1, got -1"),
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"known": torch.full((3, 5), -1)}, r"must be \(2, L\) or \(1, L\)"),
        ({"known": torch.full((5,), -1)}, r"got \(5,\)"),
        ({"known": torch.zeros(2, 0, dtype=torch.int64)}, r"got \(2, 0\)"),
        ({"known": torch.full((2, 5), 10_000)}, "up to 10000"),
        ({"known": torch.full((2, 5), -1), "prompt": "line"}, "known already gives the tokens"),
        ({"known": torch.full((2, 5), -1), "length": 6}, "known already gives the tokens"),
        ({"guidance": 2.0}, "by what it is given: a prompt"),
        ({"guidance": 2.0, "known": torch.full((2, 5), -1)}, "by what it is given: a prompt"),
        ({"sampler": "maskgitt"}, "unknown sampler 'maskgitt'"),
        ({"stpes": 3}, "stpes: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(pipeline: TextPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipeline(**({"num": 2} | arguments))


def test_temperature_zero_is_the_mode(pipelines: dict[str, TextPipeline]) -> None:
    texts = pipelines["ar"](4, temperature=0).texts
    assert len(set(texts)) == 1
    assert len(set(pipelines["ar"](4).texts)) == 4


@pytest.mark.parametrize("kind", ["bd3", "ar"])
@pytest.mark.parametrize("name", ["ancestral", "first_hitting", "llada"])
def test_decoding_with_a_cache_is_decoding_without(pipelines: dict[str, TextPipeline], kind: str, name: str) -> None:
    pipeline = pipelines[kind]
    kept = pipeline.with_sampler(name)

    class Uncached:
        """The network, seen without its cache."""

        traits = replace(traits_of(pipeline.model), has_cache=False)

        def __call__(self, *arguments: Any, **more: Any) -> Any:
            return pipeline.model(*arguments, **more)

    plain: Generator = replace(kept, denoiser=Uncached())
    known = pipeline.known(30, prompt="line 1")
    first, second = (torch.cat(list(pipeline.draw(g, 5, known, batch_size=3))) for g in (kept, plain))
    assert torch.equal(first, second)


def test_the_watcher_sees_given_tokens_in_every_step(pipeline: TextPipeline) -> None:
    seen: list[Tensor] = []
    output = pipeline(3, prompt="line", steps=5, on_step=lambda done, total, x_t: seen.append(x_t.clone()))
    assert 1 <= len(seen) <= 5
    assert {pipeline.tokenizer.decode(row[:4]) for x_t in seen for row in x_t} == {"line"}
    assert torch.equal(seen[-1], output.tokens)


def test_what_is_saved_writes_the_same(pipeline: TextPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "copy")
    again = maskgen.load(str(tmp_path / "copy"), device="cpu")
    assert isinstance(again, TextPipeline)
    assert again(3).texts == pipeline(3).texts


def test_a_report_names_the_blocks_that_a_checkpoint_wrote_in(text_kinds: dict[str, Path]) -> None:
    for kind, asked in (("bd3", "llada"), ("ar", "maskgit")):
        pipeline = maskgen.load(str(text_kinds[kind]))
        used = settings_of(pipeline.with_sampler(asked))["layout"]
        assert used == f"Blocks(block_length={pipeline.model.block_length}, start='row')"


def test_a_text_longer_than_those_of_training_is_said(
    text_kinds: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = maskgen.load_text(text_kinds["mdlm"], device="cpu")
    trained = pipeline.generator.length
    pipeline(num=1, length=trained, steps=1)
    assert not caplog.records
    pipeline(num=1, length=trained + 3, steps=1)
    assert [record.getMessage() for record in caplog.records] == [
        f"length {trained + 3}: this checkpoint was trained on rows of {trained} tokens and has seen none longer"
    ]

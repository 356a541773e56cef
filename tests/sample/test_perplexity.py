"""Generative perplexity: never alone, its scorer named, its evaluations counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import maskgen
from maskgen.checkpoints.checkpoint import load_text_model, read_checkpoint
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.text_quality import CheckpointScorer, distinct_n, generative_perplexity, token_entropy
from maskgen.sample import perplexity
from maskgen.sample.nfe import CountedDenoiser
from maskgen.schedules import Cosine
from tests.tiny import KINDS, LENGTH, text_checkpoint

Command = Callable[..., tuple[int, str, str]]


def report_of(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The report's entries by name."""
    perplexity.run(str(source), output=str(out), device="cpu", **options)
    report = json.loads(out.read_text())
    return {entry["name"]: entry for entry in [report["score"], *report["others"]]}


@pytest.mark.parametrize("scorer", ["ar", "mdlm"])
def test_the_command_gives_what_the_library_gives(
    command: Command, text_kinds: dict[str, Path], tmp_path: Path, scorer: str
) -> None:
    file, judge = tmp_path / "r.json", str(text_kinds[scorer])
    options = ("--metric", "generative-perplexity", "--scorer", judge, "--num", 6, "--seed", 2, "--steps", 3)
    code, out, error = command("evaluate", text_kinds["mdlm"], *options, "--length", 10, "--output", file, "top_p=0.8")
    assert code == 0, error
    samples = maskgen.load(str(text_kinds["mdlm"]), device="cpu")(6, 10, seed=2, steps=3, top_p=0.8)
    network, tokenizer = load_text_model(read_checkpoint(judge))
    wanted = generative_perplexity(*CheckpointScorer(network, tokenizer, Rng.stream(2, "scorer"))(samples.texts))
    name = f"generative_perplexity[{judge}{', bound' if scorer == 'mdlm' else ''}, corpus]"
    report = json.loads(file.read_text())
    assert report["score"]["name"] == name
    assert report["score"]["value"] == pytest.approx(wanted, rel=1e-5)
    assert report["score"]["sampler"]["steps"] == 3
    assert report["score"]["sampler"]["checkpoint"] == str(text_kinds["mdlm"])
    assert (report["score"]["seed"], report["score"]["n_samples"]) == (2, 6)
    others = {entry["name"]: entry for entry in report["others"]}
    assert others["token_entropy[nats]"]["value"] == pytest.approx(float(token_entropy(samples.tokens).mean()))
    for n in (1, 2, 3, 4):
        assert others[f"distinct_{n}"]["value"] == pytest.approx(distinct_n(samples.tokens, n))
    assert {"nfe_per_sample", "seconds_per_sample"} <= set(others)
    assert all(shown in out for shown in [name, *others])


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_at_a_time_takes_as_many_evaluations_as_tokens(
    text_kinds: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    sampler = "autoregressive" if kind == "ar" else "first_hitting"
    options: dict[str, Any] = {"scorer": str(text_kinds["ar"]), "num": 3, "sampler": sampler}
    found = report_of(text_kinds[kind], tmp_path / "r.json", **options)
    assert found["nfe_per_sample"]["value"] == LENGTH


@pytest.mark.parametrize("kind", ["mdlm", "bd3"])
def test_steps_that_reveal_nothing_cost_no_evaluation(text_kinds: dict[str, Path], tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {"scorer": str(text_kinds["ar"]), "num": 8, "sampler": "ancestral", "length": 8}
    found = report_of(text_kinds[kind], tmp_path / "r.json", steps=64, **options)
    assert 1 < found["nfe_per_sample"]["value"] < 8.001, "eight tokens appear in eight steps at most"
    few = report_of(text_kinds[kind], tmp_path / "r.json", steps=2, **options)
    assert few["nfe_per_sample"]["value"] <= 2


def test_all_tokens_at_once_take_one_evaluation(text_kinds: dict[str, Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"scorer": str(text_kinds["ar"]), "num": 33, "sampler": "maskgit", "steps": 1}
    assert report_of(text_kinds["mdlm"], tmp_path / "r.json", **options)["nfe_per_sample"]["value"] == 1


def test_counting_changes_nothing_and_reaches_into_the_cache(text_kinds: dict[str, Path]) -> None:
    pipeline = maskgen.load(str(text_kinds["bd3"]), device="cpu")
    counted = CountedDenoiser(pipeline.model)
    assert counted.block_length == pipeline.model.block_length
    x_t = torch.full((3, LENGTH), pipeline.tokenizer.vocab_size)
    where = torch.zeros_like(x_t, dtype=torch.bool)
    where[:2, :2] = True
    plain = pipeline.model(x_t, torch.ones(3), where=where).logits
    assert torch.equal(counted(x_t, torch.ones(3), where=where).logits, plain)
    assert counted.n_rows == 2
    counted.cached()(x_t, torch.ones(3), where=where)
    assert counted.n_rows == 4
    counted(x_t, torch.ones(3))
    assert counted.n_rows == 7


def test_a_scorer_that_knows_nothing_is_as_perplexed_as_it_has_tokens(tmp_path: Path) -> None:
    for kind in ("ar", "mdlm"):
        text_checkpoint(tmp_path / kind, kind, is_uniform=True)
        found = report_of(tmp_path / kind, tmp_path / "r.json", scorer=str(tmp_path / kind), num=2)
        vocab_size = load_text_model(read_checkpoint(tmp_path / kind))[1].vocab_size
        assert next(iter(found.values()))["value"] == pytest.approx(vocab_size, rel=1e-5)


def test_a_scorer_that_reads_the_time_is_told_that_of_its_schedule(tmp_path: Path, text_kinds: dict[str, Path]) -> None:
    changes = {
        "process": {"type": "absorbing", "count": "bernoulli", "schedule": "cosine"},
        "model": {"type": "mdlm", "width": 16, "depth": 1, "heads": 2, "cond_width": 8, "has_time": True},
    }
    text_checkpoint(tmp_path / "judge", **changes)
    found = report_of(text_kinds["ar"], tmp_path / "r.json", scorer=str(tmp_path / "judge"), num=4)
    network, tokenizer = load_text_model(read_checkpoint(tmp_path / "judge"))
    rng, texts = Rng.stream(0, "scorer"), maskgen.load(str(text_kinds["ar"]), device="cpu")(4).texts
    scorer = CheckpointScorer(network, tokenizer, rng, schedule=Cosine())
    assert next(iter(found.values()))["value"] == pytest.approx(generative_perplexity(*scorer(texts)), rel=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_texts_have_the_grams_that_fit(text_kinds: dict[str, Path], tmp_path: Path, length: int) -> None:
    found = report_of(text_kinds["mdlm"], tmp_path / "r.json", scorer=str(text_kinds["ar"]), num=2, length=length)
    assert [name for name in found if name.startswith("distinct")] == [f"distinct_{n}" for n in range(1, length + 1)]


def test_greedy_texts_show_that_they_are_all_one(text_kinds: dict[str, Path], tmp_path: Path) -> None:
    ar = text_kinds["ar"]
    cold, warm = (report_of(ar, tmp_path / "r.json", scorer=str(ar), num=8, temperature=t) for t in (0.0, 1.0))
    name = next(iter(cold))
    assert cold[name]["value"] < warm[name]["value"]
    assert cold["distinct_4"]["value"] <= (LENGTH - 3) / (8 * (LENGTH - 3)) + 1e-9 < warm["distinct_4"]["value"]
    assert cold["token_entropy[nats]"]["standard_error"] == 0
    assert cold["token_entropy[nats]"]["value"] <= math.log(LENGTH)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs --scorer"),
        ({"scorer": "./none"}, "cannot load the scorer './none'"),
        ({"scorer": "fashion-vq"}, "is made for images"),
        ({"num": 1}, "--num must be at least 2"),
        ({"length": 0}, "--length at least 1, got 64 and 0"),
        ({"output": "r.csv"}, r"\.json"),
        ({"sampler": "euller"}, "unknown sampler 'euller'"),
        ({"known": 3}, "known: unknown key"),
        ({"guidance": 3.0}, "guidance of a text is by what it is given"),
    ],
)
def test_what_cannot_be_scored_is_refused(text_kinds: dict[str, Path], options: dict[str, Any], message: str) -> None:
    scorer = {} if not options else {"scorer": str(text_kinds["ar"])}
    with pytest.raises(UserError, match=message):
        perplexity.run(str(text_kinds["mdlm"]), **(scorer | options))


def test_characters_that_the_scorer_does_not_know_are_named(text_kinds: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("ab" * 200)
    text_checkpoint(tmp_path / "judge", "ar")
    with pytest.raises(UserError, match="the tokenizer has no token for '"):
        perplexity.run(str(text_kinds["mdlm"]), scorer=str(tmp_path / "judge"), num=20)


@pytest.mark.slow
def test_a_causal_model_of_a_folder_reads_the_texts(text_kinds: dict[str, Path], tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=257, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    tokenizer = maskgen.load(str(text_kinds["mdlm"]), device="cpu").tokenizer
    tokenizer.save(tmp_path / "gpt" / "tokenizer.json")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "gpt" / "tokenizer.json"))
    fast.save_pretrained(tmp_path / "gpt")
    judge = str(tmp_path / "gpt")
    found = report_of(text_kinds["mdlm"], tmp_path / "r.json", scorer=judge, num=3)
    assert next(iter(found)) == f"generative_perplexity[{judge}, corpus]"
    assert "3 of 3 texts were cut" in perplexity.run(str(text_kinds["mdlm"]), scorer=judge, num=3, device="cpu")
    with pytest.raises(UserError, match="finds no token to score"):
        perplexity.run(str(text_kinds["mdlm"]), scorer=judge, num=2, length=1)

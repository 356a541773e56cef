"""The likelihood of a checkpoint: the command against the library, every token once, what knowing nothing costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.checkpoints.checkpoint import load_model, load_text_model, read_checkpoint
from maskgen.core.errors import UserError
from maskgen.core.predictions import Condition
from maskgen.core.rng import Rng
from maskgen.data.cache import token_data
from maskgen.evaluation.metrics.likelihood import corpus_likelihood
from maskgen.sample import likelihood
from maskgen.schedules import Cosine
from tests.tiny import KINDS, LENGTH, POEM, text_checkpoint

Command = Callable[..., tuple[int, str, str]]


def scores(file: Path) -> dict[str, Any]:
    """The entries of a report by name."""
    report = json.loads(file.read_text())
    return {entry["name"]: entry for entry in [report["score"], *report["others"]]}


def scored(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    likelihood.run(str(path), output=str(out), device="cpu", **options)
    return scores(out)


def rows_of(path: Path, text: str) -> Iterator[Tensor]:
    """The rows of a text, and the part of a row that is left."""
    tokens = load_text_model(read_checkpoint(path))[1].encode(text)
    whole = len(tokens) // LENGTH * LENGTH
    yield tokens[:whole].view(-1, LENGTH)
    yield tokens[None, whole:]


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_gives_what_the_library_gives(
    command: Command, text_kinds: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    path, file = text_kinds[kind], tmp_path / "r.json"
    code, out, error = command("evaluate", path, "--strata", 4, "--seed", 3, "--output", file)
    assert code == 0, error
    network, tokenizer = load_text_model(read_checkpoint(path))
    test = POEM[len(POEM) - int(len(POEM) * 0.05) :]
    assert len(test) % LENGTH, "the last row is short"
    wanted = corpus_likelihood(network, rows_of(path, test), Rng.stream(3), mask_id=tokenizer.vocab_size, strata=4)
    found, is_exact = scores(file), kind == "ar"
    name = f"bits_per_token[{'exact' if is_exact else 'bound'}]"
    assert next(iter(found)) == name
    assert f"{found[name]['value']:.4f}" in out
    assert found[name]["value"] == pytest.approx(wanted.bits_per_token(), rel=1e-6)
    assert found[name]["standard_error"] == pytest.approx((wanted.standard_error or 0) / math.log(2), rel=1e-5)
    assert found[name]["n_samples"] == wanted.n_tokens == len(test)
    assert found[name]["of"] == "poem.txt test"
    assert found[name]["seed"] == 3
    assert ("monte_carlo_error[bits_per_token]" in found) is not is_exact


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_knows_nothing_costs_ln_v_a_token(tmp_path: Path, kind: str) -> None:
    text_checkpoint(tmp_path / "c", kind, is_uniform=True)
    vocab_size = load_text_model(read_checkpoint(tmp_path / "c"))[1].vocab_size
    found = scored(tmp_path / "c", tmp_path / "r.json", strata=256 if kind == "genmd4" else 2)
    entry = next(entry for name, entry in found.items() if name.startswith("bits_per_token"))
    if kind == "genmd4":  # how many tokens are masked at a time is drawn, and the rates are its only knowledge
        error = found["monte_carlo_error[bits_per_token]"]["value"]
        assert 0 < error < 0.02 * math.log2(vocab_size)
        assert abs(entry["value"] - math.log2(vocab_size)) < 3 * error
    else:
        assert entry["value"] == pytest.approx(math.log2(vocab_size), rel=1e-6)
        assert next(one for name, one in found.items() if name.startswith("perplexity"))["value"] == pytest.approx(
            vocab_size, rel=1e-5
        )


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("stride", [None, 5])
def test_every_token_of_a_split_counts_once(tmp_path: Path, split: str, stride: int | None) -> None:
    data = {"type": "text_file", "path": str(tmp_path / "poem.txt"), "length": LENGTH, "stride": stride}
    text_checkpoint(tmp_path / "c", "ar", is_uniform=True, data=data)
    found = scored(tmp_path / "c", tmp_path / "r.json", split=split)
    n_held_out = int(len(POEM) * 0.05)
    entry = found["bits_per_char[exact]"]
    assert entry["n_samples"] == (len(POEM) - 2 * n_held_out if split == "train" else n_held_out)
    assert entry["value"] == pytest.approx(found["bits_per_token[exact]"]["value"]), "a token is a character"
    assert entry["of"] == f"poem.txt {split}"


def test_a_split_shorter_than_a_row_is_scored(tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text("abcde" * 21)
    text_checkpoint(tmp_path / "c", is_uniform=True)
    found = scored(tmp_path / "c", tmp_path / "r.json")
    assert found["bits_per_token[bound]"]["n_samples"] == 5
    assert found["bits_per_token[bound]"]["value"] == pytest.approx(math.log2(5))
    assert found["bits_per_token[bound]"]["standard_error"] is None


@pytest.mark.parametrize("tokenizer", ["characters", "bytes"])
def test_bits_are_shared_out_over_characters_and_bytes_of_the_text(tmp_path: Path, tokenizer: str) -> None:
    text = "naïve ξένος 林\n" * 40
    (tmp_path / "poem.txt").write_bytes(text.encode())
    text_checkpoint(tmp_path / "c", "ar", is_uniform=True, tokenizer=tokenizer)
    found = scored(tmp_path / "c", tmp_path / "r.json")
    test = text[len(text) - int(len(text) * 0.05) :]
    vocab_size, n_tokens = (len(set(text)), len(test)) if tokenizer == "characters" else (256, len(test.encode()))
    bits = n_tokens * math.log2(vocab_size)
    assert found["bits_per_token[exact]"]["n_samples"] == n_tokens
    assert found["bits_per_char[exact]"]["value"] == pytest.approx(bits / len(test))
    assert found["bits_per_byte[exact]"]["value"] == pytest.approx(bits / len(test.encode()))
    assert len(test) < len(test.encode())


def test_a_network_that_reads_the_time_is_told_that_of_its_schedule(tmp_path: Path) -> None:
    changes = {
        "process": {"type": "absorbing", "count": "bernoulli", "schedule": "cosine"},
        "model": {"type": "mdlm", "width": 16, "depth": 1, "heads": 2, "cond_width": 8, "has_time": True},
    }
    text_checkpoint(tmp_path / "c", **changes)
    network, tokenizer = load_text_model(read_checkpoint(tmp_path / "c"))
    test = POEM[len(POEM) - int(len(POEM) * 0.05) :]
    found = scored(tmp_path / "c", tmp_path / "r.json")["bits_per_token[bound]"]["value"]
    right, wrong = (
        corpus_likelihood(network, rows_of(tmp_path / "c", test), Rng.stream(0), mask_id=tokenizer.vocab_size, **more)
        for more in ({"schedule": Cosine()}, {})
    )
    assert found == pytest.approx(right.bits_per_token(), rel=1e-6)
    assert found != pytest.approx(wrong.bits_per_token(), rel=1e-4)


def test_digits_have_bits_a_dimension_given_their_class(command: Command, digits_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    code, _, error = command("evaluate", digits_run, "--metric", "likelihood", "--strata", 2, "--output", file)
    assert code == 0, error
    checkpoint = read_checkpoint(digits_run)
    network, tokenizer = load_model(checkpoint)
    assert tokenizer is not None
    data = token_data(checkpoint.recipe.build_data().split("test"), tokenizer, progress=False)
    x_0, labels = data.__getitems__(range(len(data)))
    schedule: Any = checkpoint.recipe.build_process(17).schedule  # type: ignore[attr-defined]
    wanted = corpus_likelihood(
        network, [(x_0, Condition(labels))], Rng.stream(0), mask_id=17, strata=2, schedule=schedule
    )
    found = scores(file)
    assert found["bits_per_dim[bound]"]["value"] == pytest.approx(wanted.bits_per_token(), rel=1e-5)
    assert found["bits_per_dim[bound]"]["n_samples"] == 297 * 64
    assert found["bits_per_dim[bound]"]["of"] == "digits test given the class"
    assert not {"bits_per_char[bound]", "bits_per_byte[bound]"} & set(found)
    labels = torch.full_like(labels, -1)
    other = corpus_likelihood(
        network, [(x_0, Condition(labels))], Rng.stream(0), mask_id=17, strata=2, schedule=schedule
    )
    assert found["bits_per_dim[bound]"]["value"] != pytest.approx(other.bits_per_token(), rel=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, "unknown split 'dev'"),
        ({"strata": 3}, "must be 1 or even, got 3"),
        ({"strata": 0}, "must be 1 or even, got 0"),
        ({"strata": -2}, "must be 1 or even, got -2"),
        ({"output": "r.txt"}, r"\.json"),
    ],
)
def test_what_cannot_be_scored_is_refused(text_run: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        likelihood.run(str(text_run), **options)


def test_data_that_went_away_are_named(tmp_path: Path) -> None:
    text_checkpoint(tmp_path / "c")
    (tmp_path / "poem.txt").unlink()
    with pytest.raises(UserError, match=r"poem\.txt. is no file or folder"):
        likelihood.run(str(tmp_path / "c"))


def test_a_network_for_rows_of_one_length_is_scored_without_the_short_row_at_the_end(tmp_path: Path) -> None:
    found = {}
    for mixer in ("attention", "token"):
        text_checkpoint(tmp_path / mixer, is_uniform=True, model={**KINDS["mdlm"]["model"], "mixer": mixer})
        found[mixer] = scored(tmp_path / mixer, tmp_path / f"{mixer}.json")
    whole, all_rows = found["token"], found["attention"]
    name = next(name for name in whole if name.startswith("bits_per_char"))
    assert whole[name]["n_samples"] < all_rows[name]["n_samples"]
    assert whole[name]["value"] == pytest.approx(all_rows[name]["value"], rel=1e-6)

"""Training on text from end to end: resuming, the run's tokenizer, packed documents, held-out text."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml
from accelerate import Accelerator

import maskgen
from maskgen.checkpoints.checkpoint import CheckpointError, read_checkpoint
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.data.base import DataError
from maskgen.evaluation.metrics.likelihood import row_nll
from maskgen.recipes.load import parse_recipe
from maskgen.tokenizers.text.tokenizer import TokenizerError
from maskgen.train import parts
from maskgen.train.callbacks import describe
from maskgen.train.program import run
from tests.tiny import KINDS, LENGTH, POEM, text_tree

Command = Callable[..., tuple[int, str, str]]
TRAIN = {
    "steps": 6, "batch_size": 4, "accumulate": 2, "warmup": 2, "ema": 0.9, "checkpoint_every": 3, "log_every": 1,
    "preview_every": 0, "validation_rows": 4, "tensorboard": False,
}  # fmt: skip


def recipe(folder: Path, kind: str = "mdlm", train: dict[str, Any] | None = None, **changes: Any) -> str:
    """A recipe file over folder / poem.txt."""
    folder.mkdir(exist_ok=True)
    tree = text_tree(folder / "poem.txt", kind, train=TRAIN | (train or {}), **changes)
    (folder / "r.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True))
    return str(folder / "r.yaml")


def trained(folder: Path, source: str, *overrides: str, resume: bool = False) -> Path:
    return run(source, overrides, str(folder), resume, "cpu")


def lines(directory: Path) -> list[dict[str, float]]:
    """The metrics without speeds and times."""
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    clocks = ("samples/s", "seconds", "mfu", "data_wait")
    return [{key: value for key, value in line.items() if not key.endswith(clocks)} for line in found]


@pytest.mark.parametrize(
    ("kind", "optimizer"), [("mdlm", "adamw"), ("mdlm", "muon"), ("genmd4", "muon"), ("bd3", "muon"), ("ar", "adamw")]
)
def test_three_steps_and_three_more_are_six_bit_for_bit(tmp_path: Path, kind: str, optimizer: str) -> None:
    model = KINDS[kind]["model"] | {"dropout": 0.1}
    source = recipe(tmp_path / "data", kind, {"optimizer": optimizer}, model=model)
    trained(tmp_path / "whole", source)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoint-6")
    torch.manual_seed(1234)
    trained(tmp_path / "parts", source, resume=True)
    first, second = (read_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    assert second.step == 6
    assert set(first.info["files"]) == {"model.safetensors", "training.safetensors", "tokenizer.json", "recipe.yaml"}
    assert first.info["files"] == second.info["files"]
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    state = first.tensors("training.safetensors")
    assert any(name.endswith(".momentum") for name in state) is (optimizer == "muon")


def test_the_optimizers_are_not_one(tmp_path: Path) -> None:
    source = recipe(tmp_path / "data", train={"steps": 2, "validation_rows": 0})
    paths = [trained(tmp_path / name, source, f"train.optimizer={name}") for name in ("adamw", "muon")]
    first, second = (read_checkpoint(path).info["files"]["model.safetensors"]["sha256"] for path in paths)
    assert first != second


def test_the_run_directory_has_tokenizer_metrics_and_preview(text_run: Path) -> None:
    names = {path.name for path in text_run.iterdir()}
    assert {"recipe.yaml", "metrics.jsonl", "tokenizer.json", "checkpoint-2", "checkpoint-4", "samples"} <= names
    found = [json.loads(line) for line in (text_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found if "train/loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in found if "validation/loss" in line] == [2, 4]
    info = read_checkpoint(text_run).info
    assert (info["length"], info["classes"], info["step"]) == (LENGTH, [], 4)
    assert "image_shape" not in info
    own = (text_run / "tokenizer.json").read_bytes()
    assert (text_run / "checkpoint-4" / "tokenizer.json").read_bytes() == own


def test_a_preview_is_what_the_checkpoint_writes(text_run: Path) -> None:
    assert [path.name for path in (text_run / "samples").iterdir()] == ["step-00000004.txt"]
    texts = (text_run / "samples" / "step-00000004.txt").read_bytes().decode().split("\n\n----\n\n")
    assert texts == maskgen.load(str(text_run), device="cpu")(4, batch_size=4).texts


def test_a_validation_is_described_beside_knowing_nothing() -> None:
    values = {"loss": 1.25, "cross_entropy": 2.5, "accuracy": 0.125}
    plain = describe(values, math.log(27))
    assert plain == "loss 1.2500, cross-entropy 2.500 (uniform baseline 3.296), accuracy 12.5%"
    more = {"cross_entropy/masked 0-25%": 1.0, "accuracy/masked 0-25%": 0.75}
    assert describe(values | more, math.log(27)) == plain + "; by share masked: masked 0-25% 1.00 (75%)"


def test_a_resumed_run_is_refused_other_text(tmp_path: Path) -> None:
    source = recipe(tmp_path / "data", train={"steps": 1})
    trained(tmp_path / "run", source)
    (tmp_path / "data" / "poem.txt").write_text(POEM.replace("ï", "i"))
    with pytest.raises(UserError, match=r"checkpoint-1 was trained on other data \(as many rows\)"):
        trained(tmp_path / "run", source, "train.steps=2", resume=True)


def test_a_resumed_run_keeps_the_tokenizer_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = recipe(tmp_path / "data", train={"steps": 2, "checkpoint_every": 2})
    trained(tmp_path / "run", source)
    before = (tmp_path / "run" / "tokenizer.json").read_bytes()

    def anew(*_: object) -> NoReturn:
        raise AssertionError("a tokenizer made anew may be another")

    monkeypatch.setattr("maskgen.recipes.schema.Recipe.build_text_tokenizer", anew)
    trained(tmp_path / "run", source, "train.steps=3", resume=True)
    assert (tmp_path / "run" / "checkpoint-3" / "tokenizer.json").read_bytes() == before
    (tmp_path / "run" / "tokenizer.json").unlink()  # only checkpoints were brought to this machine
    trained(tmp_path / "run", source, "train.steps=4", resume=True)
    assert (tmp_path / "run" / "checkpoint-4" / "tokenizer.json").read_bytes() == before


def test_characters_that_came_later_are_named(tmp_path: Path) -> None:
    source = recipe(tmp_path / "data", train={"steps": 2, "checkpoint_every": 2})
    trained(tmp_path / "run", source)
    (tmp_path / "data" / "poem.txt").write_text("ξ" + POEM)
    with pytest.raises(TokenizerError, match="no token for 'ξ'"):
        trained(tmp_path / "run", source, "train.steps=3", resume=True)


def test_an_altered_tokenizer_is_refused_on_resume(tmp_path: Path) -> None:
    source = recipe(tmp_path / "data", train={"steps": 1})
    file = trained(tmp_path / "run", source) / "tokenizer.json"
    file.write_text(file.read_text().replace('"a"', '"å"'))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is (altered|truncated or altered)"):
        trained(tmp_path / "run", source, "train.steps=2", resume=True)


def test_a_run_that_ended_before_its_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    source = recipe(tmp_path / "data", train={"steps": 1})
    trained(tmp_path / "run", source)
    shutil.rmtree(tmp_path / "run" / "checkpoint-1")
    (tmp_path / "data" / "poem.txt").write_text("abc" * 200)
    path = trained(tmp_path / "run", source)
    assert read_checkpoint(path).text_tokenizer().vocab_size == 3


def test_a_checkpoint_moved_elsewhere_writes_without_its_data(tmp_path: Path) -> None:
    source = recipe(tmp_path / "data", train={"steps": 1})
    path = trained(tmp_path / "run", source)
    wanted = maskgen.load(str(path), device="cpu")(2).texts
    path.rename(tmp_path / "elsewhere")
    for name in ("data", "run"):
        shutil.rmtree(tmp_path / name)
    assert maskgen.load(str(tmp_path / "elsewhere"), device="cpu")(2).texts == wanted


def test_an_exported_checkpoint_writes_the_same(command: Command, text_run: Path, tmp_path: Path) -> None:
    code, _, error = command("export", text_run, tmp_path / "published", "--summary", "tiny")
    assert code == 0, error
    names = {path.name for path in (tmp_path / "published").iterdir()}
    assert names == {"README.md", "checkpoint.json", "model.safetensors", "recipe.yaml", "tokenizer.json"}
    first, second = (maskgen.load(str(path), device="cpu")(3).texts for path in (text_run, tmp_path / "published"))
    assert first == second
    assert command("sample", tmp_path / "published", "--num", 1)[1] == first[0] + "\n"


@pytest.mark.parametrize("text", ["ab" * 60, "ab" * 120])
def test_held_out_text_shorter_than_a_row_is_left_out(tmp_path: Path, text: str) -> None:
    """Six characters, and twelve: a row of them."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "poem.txt").write_text(text)
    trained(tmp_path / "run", recipe(tmp_path / "data", train={"steps": 2}))
    assert any("validation/loss" in line for line in lines(tmp_path / "run")) is (len(text) == 240)


def test_no_held_out_text_is_needed_where_none_is_looked_at(tmp_path: Path) -> None:
    data = {"type": "text_file", "path": str(tmp_path / "data" / "poem.txt"), "length": LENGTH}
    source = recipe(tmp_path / "data", train={"steps": 1}, data=data | {"validation_fraction": 0})
    with pytest.raises(DataError, match=r"the validation split of poem\.txt has no text"):
        trained(tmp_path / "run", source)
    assert trained(tmp_path / "run", source, "train.validation_rows=0").is_dir()


@pytest.fixture
def shelf(tmp_path: Path) -> dict[str, Any]:
    """The data of forty documents."""
    for i in range(40):
        file = tmp_path / "shelf" / f"{i:02}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("a poem, naïve "[i % 7 : i % 7 + 4 + i % 4])
    return {"type": "text_file", "path": str(tmp_path / "shelf"), "length": 32, "validation_fraction": 0.2}


def test_packed_documents_do_not_see_each_other(tmp_path: Path, shelf: dict[str, Any]) -> None:
    tokenizer = {"type": "characters", "eos": True}
    tree = text_tree(tmp_path / "x", data=shelf, tokenizer=tokenizer, train={"document_attention": True})
    made = parts.build(parse_recipe(tree), Accelerator(cpu=True))
    x_0, labels = made.train.__getitems__([0, 1])
    batch = made.to_batch(x_0, labels, Rng.stream(0))
    assert batch.documents is not None
    eos = int(x_0.max())
    ends = (x_0 == eos).sum(1)
    assert (ends > 1).all()
    assert torch.equal(batch.documents[:, 0], torch.zeros(2, dtype=torch.int64))
    for row in range(2):
        changes = (batch.documents[row].diff() == 1).nonzero()[:, 0]
        assert torch.equal(changes, (x_0[row, :-1] == eos).nonzero()[:, 0]), "the end is of what it ends"
    plain = parse_recipe(tree | {"train": {}})
    batch = parts.build(plain, Accelerator(cpu=True)).to_batch(x_0, labels, Rng.stream(0))
    assert batch.documents is None


def test_a_run_with_packed_documents_trains_and_validates(tmp_path: Path, shelf: dict[str, Any]) -> None:
    tokenizer = {"type": "characters", "eos": True}
    source = recipe(tmp_path / "data", data=shelf, tokenizer=tokenizer)
    first, second = (
        trained(tmp_path / f"run-{name}", source, f"train.document_attention={name}") for name in ("true", "false")
    )
    found = [read_checkpoint(path).info["files"]["model.safetensors"]["sha256"] for path in (first, second)]
    assert found[0] != found[1]
    assert any("validation/loss" in line for line in lines(first.parent))


def test_packed_documents_need_a_token_that_ends_them(tmp_path: Path) -> None:
    source = recipe(tmp_path / "data", train={"document_attention": True})
    with pytest.raises(UserError, match=r"no token that ends a document; set tokenizer\.eos"):
        trained(tmp_path / "run", source)


@pytest.mark.parametrize("kind", ["genmd4", "bd3", "ar"])
def test_packed_documents_are_for_mdlm_only(tmp_path: Path, kind: str) -> None:
    tokenizer = {"type": "characters", "eos": True}
    source = recipe(tmp_path / "data", kind, {"document_attention": True}, tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"document_attention: only text with model .*mdlm"):
        trained(tmp_path / "run", source)


@pytest.mark.slow
@pytest.mark.learned
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_repeats_is_learned_and_written(tmp_path: Path, kind: str) -> None:
    """Its first letter is all that is to be guessed: ln 5 nats for twelve letters."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "poem.txt").write_text("abcde" * 300)
    steps = 600 if kind == "mdlm" else 300  # the others have learned it by then, with 47 or 48 of 48
    train = {
        "steps": steps, "lr": 0.01, "optimizer": "muon", "batch_size": 16, "accumulate": 1, "checkpoint_every": steps,
        "log_every": steps,
    }  # fmt: skip
    model = KINDS[kind]["model"] | {"width": 32, "depth": 2}
    path = trained(tmp_path / "run", recipe(tmp_path / "data", kind, train, model=model))
    pipeline = maskgen.load(str(path), device="cpu")
    x_0 = pipeline.tokenizer.encode("abcdeabcdeab")[None]
    nats = float(row_nll(pipeline.model, x_0, Rng.stream(0), 256, mask_id=5).nats)
    assert 0.9 * math.log(5) < nats < 2 * math.log(5)
    texts = pipeline(48, sampler="first_hitting").texts
    assert sum(text in "abcde" * 4 for text in texts) >= 36
    assert len(set(texts)) > 2


def test_a_character_that_only_held_out_text_has_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = recipe(tmp_path / "data", train={"steps": 1})
    (tmp_path / "data" / "poem.txt").write_bytes(f"\ufeff{POEM}\u00e9".encode())
    with caplog.at_level(logging.WARNING):
        tokenizer = json.loads((trained(tmp_path / "run", source) / "tokenizer.json").read_text())
    assert {"\u00e9", "a"} < set(tokenizer["model"]["vocab"])
    assert "\ufeff" not in tokenizer["model"]["vocab"]
    assert "characters of held-out text only, not trained: '\\xe9'" in caplog.text

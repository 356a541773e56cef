"""What is saved is enough to go on as if nothing had happened."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.checkpoints.checkpoint import TRAINING, Checkpoint, newest_in, read_checkpoint
from maskgen.recipes.budget import TrainSettings
from maskgen.recipes.load import parse_recipe
from maskgen.train.ema import Ema
from maskgen.train.optim import build_optimizer
from maskgen.train.state import collect, newest_whole, prune, restore, save, set_aside
from tests.tiny import CLASSES, SHAPE, TOKENIZER, tree

SETTINGS = TrainSettings(lr=0.01, ema=0.5)
FACTS = {"classes": CLASSES, "image_shape": list(SHAPE)}
RECIPES: dict[str, Any] = {
    "generator": tree(),
    "fsq": tree(TOKENIZER),
    "vq": tree(TOKENIZER, tokenizer={"type": "vq", "codes": 4, "dim": 3, "width": 8, "fine_width": 4, "depth": 1}),
}


def build(kind: str, seed: int = 0) -> tuple[Any, nn.Module, Ema, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    recipe = parse_recipe(RECIPES[kind])
    module = recipe.build_tokenizer(SHAPE)
    if kind == "generator":
        vocab_size, grid = module.vocab_size, module.grid
        module = recipe.build_model(vocab_size=vocab_size, grid=grid, n_classes=10, image_shape=SHAPE)
    return recipe, module, Ema(module, 0.5), build_optimizer(module, SETTINGS)


def train(kind: str, module: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, first: int, n: int) -> None:
    for step in range(first, first + n):
        generator = torch.Generator().manual_seed(step)
        if kind == "generator":
            loss = module(torch.randint(0, 6, (2, 64), generator=generator), torch.ones(2)).logits.square().mean()
        else:
            answer = module(torch.rand(2, *SHAPE, generator=generator))
            loss = answer.images.square().mean() + answer.penalty
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)


def everything(module: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    moments = {
        f"{index}.{key}": value
        for index, parameter in enumerate(module.parameters())
        for key, value in optimizer.state[parameter].items()
    }
    averages = {f"ema.{name}": value for name, value in ema.state_dict().items()}
    return {**module.state_dict(), **averages, **moments}


@pytest.mark.parametrize("kind", RECIPES)
def test_a_restored_run_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    recipe, *parts = build(kind)
    train(kind, *parts, first=1, n=3)
    path = save(tmp_path, 3, recipe, collect(*parts), FACTS)
    train(kind, *parts, first=4, n=3)

    _, *others = build(kind, seed=1)
    restore(read_checkpoint(path), *others)
    train(kind, *others, first=4, n=3)
    first, second = everything(*parts), everything(*others)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_a_state_can_be_saved_before_the_first_step(tmp_path: Path) -> None:
    recipe, module, ema, optimizer = build("generator")
    path = save(tmp_path, 0, recipe, collect(module, ema, optimizer), FACTS)
    _, *others = build("generator", seed=1)
    restore(read_checkpoint(path), *others)
    assert torch.equal(others[0].embedding.weight, module.embedding.weight)
    assert not others[2].state


def test_use_gets_the_average_and_training_the_raw_weights(tmp_path: Path) -> None:
    recipe, module, ema, optimizer = build("generator")
    train("generator", module, ema, optimizer, first=1, n=3)
    checkpoint = read_checkpoint(save(tmp_path, 3, recipe, collect(module, ema, optimizer), FACTS))
    name = "blocks.0.mlp.expand.weight"
    raw = module.state_dict()[name]
    assert torch.equal(checkpoint.tensors()[name], ema.average[name])
    assert torch.equal(checkpoint.tensors(TRAINING)[f"model.{name}"], raw)
    assert not torch.equal(ema.average[name], raw)


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_only_the_newest_checkpoints_are_kept(tmp_path: Path, keep: int) -> None:
    steps = [9, 10, 100, 20]
    for step in steps:
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "samples").mkdir()
    prune(tmp_path, TrainSettings(keep_checkpoints=keep))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"checkpoint-{step}" for step in sorted(steps)[-keep:]} | {"samples"}


def test_the_checkpoint_just_written_stays_whatever_its_number(tmp_path: Path) -> None:
    for step in (200, 250, 300):
        (tmp_path / f"checkpoint-{step}").mkdir()
    prune(tmp_path, TrainSettings(keep_checkpoints=1), tmp_path / "checkpoint-250")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-250", "checkpoint-300"}


def test_a_checkpoint_the_disk_cannot_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, *parts = build("generator")
    good, bad = (save(tmp_path, step, recipe, collect(*parts), FACTS) for step in (1, 2))

    def verify(self: Checkpoint) -> None:
        if self.path == bad:
            raise OSError(errno.EIO, "Input/output error", str(bad))

    monkeypatch.setattr(Checkpoint, "verify", verify)
    checkpoint, faults = newest_whole(tmp_path)
    assert checkpoint is not None
    assert checkpoint.path == good
    assert set(faults) == {bad}
    set_aside(faults)
    assert newest_in(tmp_path) == good
    assert (tmp_path / ".bad-checkpoint-2").is_dir()


def test_what_a_user_named_like_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-2-backup"):
        (tmp_path / name).mkdir()
    prune(tmp_path, TrainSettings(keep_checkpoints=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-2-backup"]

"""Starting from another checkpoint: rows, positions, frozen parts, low-rank changes, exact resume, origin."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import nn

import maskgen
from maskgen.checkpoints.adapters import digest_of
from maskgen.checkpoints.checkpoint import CheckpointError, load_system, read_checkpoint
from maskgen.checkpoints.transfer import Match, RowSources, transfer
from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.nn.lora import LoraSettings, add_lora
from maskgen.recipes.budget import TrainSettings
from maskgen.recipes.load import parse_recipe
from maskgen.train.finetuning import freeze
from maskgen.train.optim import build_optimizer, rate_scales
from maskgen.train.parts import build
from tests.tiny import FIELD, GENERATOR, KINDS, POEM, TOKENIZER, text_tree

Command = Callable[..., tuple[int, str, str]]
TRAIN = {
    "steps": 2, "batch_size": 4, "warmup": 0, "ema": 0.5, "checkpoint_every": 1, "keep_checkpoints": 9, "log_every": 1,
    "preview_every": 0, "validation_rows": 4, "tensorboard": False,
}  # fmt: skip


def file_of(folder: Path, tree: dict[str, Any], **changes: Any) -> str:
    """A recipe file; `train` and `model` are added to, other keys replaced."""
    tree = copy.deepcopy(tree)
    train = TRAIN | changes.pop("train", {})
    if "model" in tree:
        tree["model"] |= changes.pop("model", {})
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree | changes | {"train": train}, allow_unicode=True))
    return str(file)


def trained(
    folder: Path, tree: dict[str, Any], start: str | Path | None = None, skip: tuple[str, ...] = (), **changes: Any
) -> Path:
    source = file_of(folder.with_name(f"{folder.name}-recipe"), tree, **changes)
    overrides = {"start.skip": list(skip)} if skip else {}
    return maskgen.train(source, overrides, folder, device="cpu", start=start)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest generator of digits."""
    return trained(tmp_path_factory.mktemp("source") / "run", GENERATOR)


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poems")
    (folder / "poem.txt").write_text(POEM)
    return trained(folder / "run", text_tree(folder / "poem.txt"))


def filled(first: Path, start: dict[str, Any] | None = None, **changes: Any) -> nn.Module:
    """The network of a run of no steps from a checkpoint: what training would begin with."""
    from maskgen.train.finetuning import begin, known_of, source_of

    tree = copy.deepcopy(GENERATOR) | changes
    recipe = parse_recipe(tree | {"start": {"checkpoint": str(first)} | (start or {}), "train": TRAIN})
    source = source_of(recipe)
    parts = build(recipe, Accelerator(cpu=True), None, known_of(recipe, source))
    begin(parts, recipe, source, first, is_main=False)
    return parts.module


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_a_run_begins_with_the_weights_that_are_named(first: Path, weights: str) -> None:
    checkpoint = read_checkpoint(first)
    raw = {name[6:]: value for name, value in checkpoint.tensors("training.safetensors").items() if "model." in name}
    expected = checkpoint.tensors() if weights == "ema" else raw
    state = filled(first, {"weights": weights}).state_dict()
    assert digest_of(state) == digest_of(expected)
    assert digest_of(raw) != digest_of(checkpoint.tensors())


def test_rows_go_by_their_names_and_new_classes_begin_as_no_class() -> None:
    old, new = (MODELS.build("maskgit", vocab_size=5, grid=(2, 2), n_classes=n) for n in (3, 4))
    match = Match(RowSources.by_name("abcde", "abcde"), RowSources.by_name("xyz", "zwxv"), ((2, 2), (2, 2)))
    before, done = old.state_dict()["labels.weight"], transfer(new, old.state_dict(), match, "old")
    after = done.state["labels.weight"]
    for row, source in enumerate([2, 3, 0, 3, 3]):
        assert torch.equal(after[row], before[source])
    assert done.changed == {"labels.weight"}
    assert done.notes == ["classes: 2 of 4 taken, new rows for w, v"]


def test_tokens_and_classes_of_one_table_move_with_their_kind() -> None:
    keys = {"type": "maskgit", "condition": "token", "width": 12, "depth": 1, "heads": 2}
    old = MODELS.build(keys, vocab_size=3, grid=(2, 2), n_classes=2)
    new = MODELS.build(keys, vocab_size=5, grid=(2, 2), n_classes=1)
    match = Match(RowSources.by_name("abc", "cxaby"), RowSources.by_name("pq", "q"), ((2, 2), (2, 2)))
    before, own = old.state_dict(), new.state_dict()
    done = transfer(new, before, match, "old")
    wanted = [2, None, 0, 1, None, 3, 5, 6]  # c, new, a, b, new, [MASK], class q, no class
    assert len(wanted) == len(own["embedding.weight"])
    for row, source in enumerate(wanted):
        expected = own["embedding.weight"][row] if source is None else before["embedding.weight"][source]
        assert torch.equal(done.state["embedding.weight"][row], expected), row


def test_positions_of_another_grid_are_interpolated_and_constant_ones_stay_constant() -> None:
    keys = {"type": "maskgit", "condition": "token", "width": 12, "depth": 1, "heads": 2}
    old, new = (MODELS.build(keys, vocab_size=3, grid=grid, n_classes=2) for grid in ((2, 2), (4, 6)))
    state = old.state_dict()
    state["positions"][1:] = torch.arange(12.0)
    match = Match(RowSources.by_name("abc", "abc"), RowSources.by_name("pq", "pq"), ((2, 2), (4, 6)))
    done = transfer(new, state, match, "old")
    assert torch.equal(done.state["positions"][0], state["positions"][0]), "the class token has no place"
    assert torch.allclose(done.state["positions"][1:], torch.arange(12.0).expand(24, 12), atol=1e-5)
    assert done.notes == ["positions: interpolated from a grid 2 x 2 to 4 x 6"]


def test_what_does_not_fit_is_refused_unless_it_is_named(first: Path) -> None:
    deeper = copy.deepcopy(GENERATOR["model"]) | {"depth": 2}
    with pytest.raises(UserError, match=r"blocks\.1\..* is missing.*start\.skip"):
        filled(first, model=deeper)
    assert isinstance(filled(first, {"skip": ["blocks.1.*", "modulations.1.*"]}, model=deeper), nn.Module)
    with pytest.raises(UserError, match=r"embedding\.weight is 6 x 8, here 6 x 12"):
        filled(first, model=copy.deepcopy(GENERATOR["model"]) | {"width": 12})
    with pytest.raises(UserError, match="generator of image, the recipe trains a tokenizer of image"):
        maskgen.train(parse_recipe(TOKENIZER | {"train": TRAIN}), output=first / "no", start=first, device="cpu")


def test_a_field_network_is_built_on_the_grid_it_came_from(tmp_path: Path) -> None:
    """Sines and cosines of the finer grid lie between those the network was trained with."""
    coarse = trained(tmp_path / "coarse", FIELD)
    skip = ("embedding.*", "trunk.head.out.*")
    fine = trained(tmp_path / "fine", FIELD, coarse, skip, tokenizer={"type": "patches", "size": 1})
    info = read_checkpoint(fine).info
    assert info["built_grid"] == [4, 4]
    before, after = (load_system(read_checkpoint(path)).network.positions for path in (coarse, fine))
    assert after.shape == (64, 16)
    assert torch.allclose(after[0], before[0])
    assert torch.allclose(after[2], before[1], atol=1e-6)


def test_a_vocabulary_that_grew_keeps_the_rows_of_its_tokens(poems: Path, tmp_path: Path) -> None:
    (tmp_path / "poem.txt").write_text(POEM.replace("poem", "peüm"))
    path = trained(tmp_path / "run", text_tree(tmp_path / "poem.txt"), poems, train={"lr": 1e-12, "weight_decay": 0.0})
    before, after = (read_checkpoint(one) for one in (poems, path))
    names, new = before.text_tokenizer().token_names(), after.text_tokenizer().token_names()
    rows, moved = before.tensors()["embedding.weight"], after.tensors()["embedding.weight"]
    assert set(new) - set(names) == {"ü"}
    for row, name in enumerate(new):
        assert name == "ü" or torch.allclose(moved[row], rows[names.index(name)], atol=1e-6)
    assert torch.allclose(moved[-1], rows[-1], atol=1e-6), "[MASK] follows the tokens"


@pytest.mark.parametrize("more", [{}, {"model": {"lora": {"rank": 2}}}, {"train": {"freeze": ["embedding.*"]}}])
def test_a_resumed_run_is_exact_when_its_source_has_gone(first: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    shutil.copytree(first.parent, tmp_path / "source")
    tree = {"tree": GENERATOR, "start": tmp_path / "source", "objective": {"type": "masked_tokens"}}
    whole = trained(tmp_path / "whole", **tree, **more)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoint-2")
    shutil.rmtree(tmp_path / "source")
    source = str(tmp_path / "whole-recipe" / "recipe.yaml")
    again = maskgen.train(source, output=tmp_path / "parts", resume=True, device="cpu", start=tmp_path / "source")
    one, two = (read_checkpoint(path) for path in (whole, again))
    assert one.info["files"] == two.info["files"]
    assert one.info["start"] == two.info["start"]
    assert one.info["start"]["digest"] == digest_of(read_checkpoint(first).tensors())


def test_another_start_is_refused_on_resume(first: Path, tmp_path: Path) -> None:
    trained(tmp_path / "run", GENERATOR, first)
    with pytest.raises(UserError, match=r"trained with another start \(start\.checkpoint .* -> default\)"):
        maskgen.train(str(tmp_path / "run-recipe" / "recipe.yaml"), output=tmp_path / "run", resume=True, device="cpu")


def test_a_frozen_tensor_stays_and_the_others_move(first: Path, tmp_path: Path) -> None:
    path = trained(tmp_path / "run", GENERATOR, first, train={"freeze": ["blocks.*", "positions"]})
    before, after = read_checkpoint(first).tensors(), read_checkpoint(path).tensors()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("blocks.", "positions"))}


def test_a_frozen_part_stays_in_evaluation_mode() -> None:
    network = MODELS.build("classifier", image_shape=(1, 8, 8), n_classes=3)
    freeze(network, ("body.0.*",))
    network.train()
    before = network.state_dict()["body.0.1.running_mean"].clone()
    network(torch.rand(4, 1, 8, 8))
    assert torch.equal(network.state_dict()["body.0.1.running_mean"], before)
    assert network.get_submodule("body.2").training
    with pytest.raises(UserError, match=r"train\.freeze: 'bodi\.\*' matches no name.*did you mean body\.\*"):
        freeze(network, ("bodi.*",))
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(network, ("*",))


def test_an_adapter_is_small_names_its_base_and_merges_to_the_same_outputs(first: Path, tmp_path: Path) -> None:
    path = trained(tmp_path / "run", GENERATOR, first, model={"lora": {"rank": 2, "alpha": 8}}, train={"lr": 0.05})
    checkpoint = read_checkpoint(path)
    assert all("lora_" in name for name in checkpoint.tensors())
    assert checkpoint.info["base"]["source"] == str(first)
    bare = load_system(read_checkpoint(first)).network
    merged = load_system(checkpoint).network
    x, t = (Rng.stream("tokens").uniform((3, 64)) * 6).long(), torch.zeros(3)
    unmerged = copy.deepcopy(bare)
    add_lora(unmerged, LoraSettings(rank=2, alpha=8))
    unmerged.load_state_dict({**unmerged.state_dict(), **checkpoint.tensors()})
    first_logits, logits, expected = (network(x, t).logits for network in (bare, merged, unmerged.eval()))
    assert (logits - expected).abs().max() < 1e-5
    assert (logits - first_logits).abs().max() > 1e-3
    assert merged.state_dict().keys() == bare.state_dict().keys()


def test_an_exported_adapter_needs_no_base(command: Command, first: Path, tmp_path: Path) -> None:
    shutil.copytree(first, tmp_path / "base")
    path = trained(tmp_path / "run", GENERATOR, tmp_path / "base", model={"lora": {"rank": 2}})
    expected = load_system(read_checkpoint(path)).network.state_dict()
    assert command("export", path, tmp_path / "published")[0] == 0
    shutil.rmtree(tmp_path / "base")
    shutil.move(path, tmp_path / "alone")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"low-rank changes of .*base, which is not there"):
        load_system(read_checkpoint(tmp_path / "alone"))
    assert digest_of(load_system(read_checkpoint(tmp_path / "published")).network.state_dict()) == digest_of(expected)


def test_an_adapter_refuses_another_base(first: Path, tmp_path: Path) -> None:
    path = trained(tmp_path / "run", GENERATOR, first, model={"lora": {"rank": 2}})
    other = trained(tmp_path / "other", GENERATOR, seed=1)
    shutil.copyfile(other / "model.safetensors", tmp_path / "run" / "base" / "model.safetensors")
    with pytest.raises(CheckpointError, match="low-rank changes are others"):
        load_system(read_checkpoint(path))


def test_new_classes_of_an_adapter_are_trained_whole(first: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    from PIL import Image

    for name in ("0", "cat"):
        (images / name).mkdir(parents=True)
        for index in range(4):
            Image.new("L", (8, 8), 40 * index).save(images / name / f"{index}.png")
    data = {"type": "folder", "path": str(images), "size": 8, "channels": 1, "test_fraction": 0.25}
    path = trained(tmp_path / "run", GENERATOR, first, data=data, model={"lora": {"rank": 2}})
    checkpoint = read_checkpoint(path)
    assert checkpoint.info["base"]["trained"] == ["labels.weight"]
    assert load_system(checkpoint).network.state_dict()["labels.weight"].shape == (3, 8)


def test_rates_fall_by_one_factor_a_layer_and_are_plain_without() -> None:
    network = MODELS.build({"type": "maskgit", "depth": 3}, vocab_size=5, grid=(2, 2), n_classes=2)
    scales = rate_scales(network, 0.5)
    assert scales["embedding.weight"] == scales["positions"] == scales["labels.weight"] == 0.5**4
    assert [scales[f"blocks.{i}.attention.qkv.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert [scales[f"modulations.{i}.bias"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert scales["head.dense.weight"] == 1
    plain, decayed = (build_optimizer(network, TrainSettings(layer_decay=decay)) for decay in (1.0, 0.5))
    assert {group["scale"] for group in plain.param_groups} == {1.0}
    n_plain, n_decayed = (sum(len(g["params"]) for g in one.param_groups) for one in (plain, decayed))
    assert n_plain == n_decayed


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_text_network_can_start_from_itself(kind: str) -> None:
    spec = KINDS[kind]["model"]
    old, new = (MODELS.build(spec, vocab_size=7, grid=(12,)) for _ in range(2))
    rows = RowSources.by_name("abcdefg", "abcdefg")
    done = transfer(new, old.state_dict(), Match(rows), "old")
    assert not done.changed
    assert digest_of(done.state) == digest_of(old.state_dict())


def test_a_tokenizer_is_fine_tuned_too(tmp_path: Path) -> None:
    source = trained(tmp_path / "source", TOKENIZER)
    path = trained(tmp_path / "run", TOKENIZER, source, train={"freeze": ["encoder.*"]})
    before, after = read_checkpoint(source).tensors(), read_checkpoint(path).tensors()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("encoder.")} <= same
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("decoder."))


def test_the_command_line_starts_from_a_checkpoint(command: Command, first: Path, tmp_path: Path) -> None:
    source = file_of(tmp_path / "recipe", GENERATOR, train={"steps": 1})
    code, out, error = command("train", source, "--from", first, "--weights", "model", "--output", tmp_path / "run")
    assert code == 0, error
    assert "raw weights of step 2, digest" in out + error
    info = read_checkpoint(tmp_path / "run").info
    assert info["start"]["weights"] == "model"
    assert f"start.checkpoint={first}" in info["command"]

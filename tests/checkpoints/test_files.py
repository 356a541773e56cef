"""Public files are read as tensors and plain settings, or not at all."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from maskgen.checkpoints.checkpoint import read_checkpoint
from maskgen.checkpoints.convert import conversion as program
from maskgen.checkpoints.convert.files import read_published, read_state
from maskgen.core.errors import UserError
from maskgen.nn.embeddings import sincos_2d

ONE, TWO = torch.ones(2), torch.full((2,), 2.0)


def saved(path: Path, tree: Any) -> Path:
    torch.save(tree, path)
    return path


def test_a_bare_state_is_read_from_either_kind_of_file(tmp_path: Path) -> None:
    save_file({"a": ONE}, tmp_path / "a.safetensors")
    for path in (saved(tmp_path / "a.pt", {"a": ONE}), tmp_path / "a.safetensors"):
        assert torch.equal(read_state(path)["a"], ONE)
    with pytest.raises(UserError, match="holds one set of weights; leave out --weights ema"):
        read_state(tmp_path / "a.pt", "ema")


def test_of_two_sets_of_weights_one_must_be_chosen(tmp_path: Path) -> None:
    tree = {"model": {"a": ONE}, "ema": {"a": TWO}, "opt": {"state": {}}, "args": argparse.Namespace(lr=1e-4)}
    path = saved(tmp_path / "training.pt", tree)
    with pytest.raises(UserError, match="holds both ema and model weights; choose with --weights"):
        read_state(path)
    assert torch.equal(read_state(path, "ema")["a"], TWO)
    assert torch.equal(read_state(path, "model")["a"], ONE)
    with pytest.raises(UserError, match="holds no ema weights, only model"):
        read_state(saved(tmp_path / "model.pt", {"model": {"a": ONE}}), "ema")


def test_prefixes_of_wrappers_are_stripped(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"ema": {"module._orig_mod.model.blocks.0.a": ONE}})
    assert [*read_state(path)] == ["blocks.0.a"]


class Runs:
    """What a pickle could do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", {"a": ONE, "b": Runs(tmp_path / "was_run")})
    with pytest.raises(UserError, match="cannot be read as tensors and plain settings"):
        read_state(path)
    assert not (tmp_path / "was_run").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        read_published(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path / "text.pt")
    with pytest.raises(UserError, match="holds a list"):
        read_state(saved(tmp_path / "list.pt", [ONE]))
    with pytest.raises(UserError, match="holds no tensors"):
        read_state(saved(tmp_path / "empty.pt", {"epoch": 3}))


def test_settings_of_a_training_run_may_hold_paths_and_numbers_of_numpy(tmp_path: Path) -> None:
    settings = argparse.Namespace(data=Path("/data"), lr=np.float32(1e-4), steps=np.int64(3), dtype=np.dtype("float64"))
    path = saved(tmp_path / "a.pt", {"ema": {"a": ONE}, "args": settings, "loss": np.float64(2), "path": Path("b")})
    assert torch.equal(read_state(path)["a"], ONE)


def test_the_nested_state_of_composer_is_read(tmp_path: Path) -> None:
    tree = {"state": {"model": {"dit.a": ONE}, "optimizers": {"adam": {}}}, "rng": [1]}
    assert torch.equal(read_state(saved(tmp_path / "ep1.pt", tree))["a"], ONE)


def small_dit() -> dict[str, torch.Tensor]:
    """A public DiT of one block, 4 x 4 tokens and 2 classes, as wide as the smallest there is."""
    shapes = {
        "x_embedder.proj.weight": (384, 4, 2, 2), "x_embedder.proj.bias": (384,),
        "t_embedder.mlp.0.weight": (384, 256), "t_embedder.mlp.0.bias": (384,),
        "t_embedder.mlp.2.weight": (384, 384), "t_embedder.mlp.2.bias": (384,),
        "y_embedder.embedding_table.weight": (3, 384),
        "blocks.0.attn.qkv.weight": (1152, 384), "blocks.0.attn.qkv.bias": (1152,),
        "blocks.0.attn.proj.weight": (384, 384), "blocks.0.attn.proj.bias": (384,),
        "blocks.0.mlp.fc1.weight": (1536, 384), "blocks.0.mlp.fc1.bias": (1536,),
        "blocks.0.mlp.fc2.weight": (384, 1536), "blocks.0.mlp.fc2.bias": (384,),
        "blocks.0.adaLN_modulation.1.weight": (2304, 384), "blocks.0.adaLN_modulation.1.bias": (2304,),
        "final_layer.linear.weight": (32, 384), "final_layer.linear.bias": (32,),
        "final_layer.adaLN_modulation.1.weight": (768, 384), "final_layer.adaLN_modulation.1.bias": (768,),
    }  # fmt: skip
    return {"pos_embed": sincos_2d((4, 4), 384)[None]} | {key: torch.ones(shape) for key, shape in shapes.items()}


def test_a_public_file_becomes_a_checkpoint_that_says_what_it_is(tmp_path: Path) -> None:
    path = program.run(str(saved(tmp_path / "dit.pt", small_dit())), str(tmp_path / "ours"))
    checkpoint = read_checkpoint(path)
    assert checkpoint.image_shape == (3, 64, 64)
    assert checkpoint.classes == ("0", "1")
    assert isinstance(checkpoint.recipe.model, dict)
    assert (checkpoint.recipe.model["depth"], checkpoint.recipe.model["width"]) == (1, 384)
    assert checkpoint.tensors()["labels.weight"].shape == (3, 384)
    assert json.loads((path / "checkpoint.json").read_text())["command"] == "maskgen convert dit.pt --layout dit"


def test_a_file_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    state = small_dit()
    del state["blocks.0.mlp.fc1.bias"]
    with pytest.raises(UserError, match=r"does not fill the network: trunk\.blocks\.0\.mlp\.expand\.bias is missing$"):
        program.run(str(saved(tmp_path / "dit.pt", state)), str(tmp_path / "ours"))
    assert not (tmp_path / "ours").exists()

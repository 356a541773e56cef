"""Networks that are built without weights and filled from a file are those that are built with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from maskgen.checkpoints.filling import MATRICES, fill_mapped, without_weights
from maskgen.checkpoints.stored import StoredTensors
from maskgen.core.rng import Rng
from maskgen.recipes.build import DataFacts, build_network, layout_of
from maskgen.recipes.load import parse_recipe
from tests.nn.test_mixers import SPECS
from tests.nn.test_recompute import NETWORKS, SIZES, built, passed, started
from tests.tiny import CLASSES, FIELD, GENERATOR, SHAPE, TOKENIZER, VECTORS

TREES = {"discrete": GENERATOR, "tokenizer": TOKENIZER, "field": FIELD, "vectors": VECTORS}
every_tree = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)

MORE: dict[str, dict[str, Any]] = {
    **{f"mixer {spec['type']}": {"type": "maskgit", "mixer": spec} for spec in SPECS},
    **{f"mixer {kind} {scan}": {"type": "maskgit", "mixer": {"type": kind, "scan": scan, "head_width": 8}}
       for kind in ("bi_mamba", "bi_mamba_v2") for scan in ("selective", "ssd")},
    **{f"maskgit {kind}": {"type": "maskgit", "positions": kind, "condition_place": "middle"}
       for kind in ("rotary", "raster")},
    **{f"mae {kind}": {"type": "mae", "decoder": {"type": kind, "width": 32, "depth": 2, "heads": 4}}
       for kind in ("cross", "cross_self")},
    "mae relative": {"type": "mae", "decoder": "linear", "encoder_sees": "all", "positions": "relative",
                     "layer_scale": 0.1},
    "mdlm exponents": {"type": "mdlm", "has_exponents": True, "cond_width": 8, "has_time": True},
}  # fmt: skip
"""Switches whose parts make parameters or buffers of their own."""
EVERY_NETWORK = NETWORKS | {name: SIZES | spec for name, spec in MORE.items()}


def build(tree: dict[str, Any]) -> nn.Module:
    recipe, facts = parse_recipe(tree), DataFacts(len(CLASSES), SHAPE)
    layout = layout_of(recipe.build_tokenizer(SHAPE), facts) if recipe.task == "generator" else None
    return build_network(recipe, facts, layout)


def stored(network: nn.Module, path: Path) -> StoredTensors:
    state = {name: Rng.stream(name).normal(value.shape).to(value.dtype) for name, value in network.state_dict().items()}
    save_file(state, path / "a.safetensors")
    return StoredTensors.of(path / "a.safetensors")


@every_tree
def test_a_filled_network_is_the_loaded_one_to_the_bit_and_in_memory(tree: dict[str, Any], tmp_path: Path) -> None:
    loaded = build(tree)
    file = stored(loaded, tmp_path)
    loaded.load_state_dict(dict(file))
    with without_weights():
        filled = build(tree)
    assert all(value.is_meta for value in filled.parameters())
    fill_mapped(filled, file)
    pairs = zip(loaded.named_parameters(), filled.named_parameters(), strict=True)
    assert all(torch.equal(a, b) and a.stride() == b.stride() and n == m for (n, a), (m, b) in pairs)
    buffers = zip(loaded.named_buffers(), filled.named_buffers(), strict=True)
    assert all(torch.equal(a, b) and n == m for (n, a), (m, b) in buffers)


@pytest.mark.parametrize("spec", EVERY_NETWORK.values(), ids=EVERY_NETWORK)
def test_every_network_without_weights_computes_what_the_ordinary_one_does(
    spec: dict[str, Any], tmp_path: Path
) -> None:
    """So nothing that it keeps beside its state dict was made of weights, which are not there yet."""
    ordinary = built(spec).eval()
    state = {name: value.contiguous() for name, value in ordinary.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    with without_weights():
        filled = started(spec)
    fill_mapped(filled, StoredTensors.of(tmp_path / "a.safetensors"))
    assert torch.equal(passed(filled.eval()), passed(ordinary))


@every_tree
def test_matrices_have_the_number_format_that_is_given_and_all_else_float32(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    file = stored(build(tree), tmp_path)
    with without_weights():
        network = build(tree)
    fill_mapped(network, file, torch.bfloat16)
    for module in network.modules():
        expected = torch.bfloat16 if isinstance(module, MATRICES) else torch.float32
        assert {value.dtype for value in module.parameters(recurse=False)} <= {expected}


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    network = build(FIELD)
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    name = next(iter(state))
    for changes, message in (
        ({name: torch.ones(3, 5)}, rf"size mismatch for {name}: \(3, 5\), not"),
        ({"another": torch.ones(1)}, "another is not one of its weights"),
    ):
        save_file({**state, **changes}, tmp_path / "a.safetensors")
        with pytest.raises(RuntimeError, match=message):
            fill_mapped(network, StoredTensors.of(tmp_path / "a.safetensors"))
    save_file({key: value for key, value in state.items() if key != name}, tmp_path / "a.safetensors")
    with pytest.raises(RuntimeError, match=f"{name} is missing"):
        fill_mapped(network, StoredTensors.of(tmp_path / "a.safetensors"))

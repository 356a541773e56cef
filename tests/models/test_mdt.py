"""MDT, both versions: published sizes, and what must not matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from maskgen.core.predictions import NULL, Batch, Condition
from maskgen.core.registry import SpecError
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS, change_grid
from maskgen.models.dit import DiT
from maskgen.objectives import Denoising
from maskgen.processes import Gaussian
from tests.cases import each
from tests.models.test_dit import stir

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())
VERSIONS = {"1": {"version": 1, "depth": 1}, "2": {"version": 2, "depth": 2}}
every_version = each("masking", VERSIONS)
x_t, t = Rng.stream("x").normal((2, 16, 6)), torch.tensor([3.0, 500.0])
cond = Condition(torch.tensor([1, NULL]))


def network(masking: dict[str, Any], **more: Any) -> DiT:
    """A small MDT in which nothing is zero."""
    torch.manual_seed(0)
    spec = {"type": "dit", "width": 16, "depth": 6, "heads": 2, "masking": {"type": "mdt"} | masking, **more}
    built: Any = MODELS.build(spec, token_width=6, grid=(4, 4), n_classes=3)
    stir(built)
    return built


@each(
    "version, decoder, sizes, n",
    [
        (1, 2, (384, 12, 6), 35_797_208),
        (1, 2, (768, 12, 12), 141_488_528),
        (1, 2, (1152, 28, 16), 699_778_144),
        (2, 4, (384, 12, 6), 38_159_576),
        (2, 6, (384, 12, 6), 38_454_872),
        (2, 4, (768, 12, 12), 150_931_856),
        (2, 6, (768, 12, 12), 152_112_272),
        (2, 4, (1152, 28, 16), 742_263_904),
    ],
)
def test_published_sizes_have_exactly_their_parameters(
    version: int, decoder: int, sizes: tuple[int, int, int], n: int
) -> None:
    width, depth, heads = sizes
    masking = {"type": "mdt", "version": version, "depth": decoder}
    spec = {"type": "dit", "width": width, "depth": depth, "heads": heads, "masking": masking}
    with torch.device("meta"):
        built = MODELS.build(
            spec | {"has_variance": True, "positions": "learned"}, token_width=16, grid=(16, 16), n_classes=1000
        )
    assert sum(p.numel() for p in built.parameters()) == n


def test_blocks_are_shared_out_as_published() -> None:
    trunk: Any = network({"version": 2, "depth": 6}, depth=12).trunk
    has_join = [block.join is not None for block in trunk.encoder_blocks]
    n_in, n_out, n_decoder, _ = GOLDEN["MDTv2_S_2 decode6: n en_in,en_out,de,side"]
    assert has_join == [False] * n_in + [True] * n_out
    assert [block.join is not None for block in trunk.decoder_blocks] == [True] * n_decoder


@every_version
def test_keeping_all_tokens_is_the_plain_pass(masking: dict[str, Any]) -> None:
    built, everything = network(masking), TokenSubset(torch.arange(16).expand(2, -1), 16)
    torch.testing.assert_close(built(x_t, t, cond, subset=everything).value, built(x_t, t, cond).value)


@every_version
def test_inference_knows_neither_the_mask_token_nor_the_side_block(masking: dict[str, Any]) -> None:
    built, subset = network(masking), TokenSubset.draw(2, 16, 0.5, Rng.stream(1))
    full, dropped = built(x_t, t, cond).value, built(x_t, t, cond, subset=subset).value
    trunk: Any = built.trunk
    with torch.no_grad():
        for parameter in [trunk.mask_token, *trunk.side_block.parameters()]:
            parameter.add_(1)
    assert torch.equal(built(x_t, t, cond).value, full)
    assert not torch.allclose(built(x_t, t, cond, subset=subset).value, dropped)


@every_version
def test_a_dropped_token_is_filled_in_from_kept_ones(masking: dict[str, Any]) -> None:
    built, subset = network(masking), TokenSubset(torch.tensor([[0, 5, 9, 12]] * 2), 16)
    answer = built(x_t, t, cond, subset=subset).value
    other = x_t.clone()
    other[:, 5] += 1
    assert not torch.allclose(built(other, t, cond, subset=subset).value[:, 1], answer[:, 1])


def test_dropped_tokens_reach_the_decoder_by_the_dense_skips_of_version_2_alone() -> None:
    subset = TokenSubset(torch.tensor([[0, 5, 9, 12]] * 2), 16)
    other = x_t.clone()
    other[:, 1] += 1  # a dropped token
    for name, masking in VERSIONS.items():
        built = network(masking)
        same = torch.equal(built(x_t, t, cond, subset=subset).value, built(other, t, cond, subset=subset).value)
        assert same is (name == "1")


@every_version
@each("keep_ratio", [0.7, 1.0])
def test_every_parameter_has_a_gradient_whether_tokens_are_dropped_or_not(
    masking: dict[str, Any], keep_ratio: float
) -> None:
    built = network(masking, has_variance=True, positions="learned").train()
    objective = Denoising(Gaussian(target="eps", steps=1000), keep_spread=0.2)
    objective(built, Batch(x_t, cond), Rng.stream(0), keep_ratio=keep_ratio).value.backward()
    gradients = {name: parameter.grad for name, parameter in built.named_parameters()}
    assert None not in gradients.values()
    idle = {name for name, grad in gradients.items() if grad is not None and not grad.any()}
    is_side = {name for name in gradients if ".side_block." in name or name.endswith("mask_token")}
    assert idle == (is_side if keep_ratio == 1 else set())


@every_version
def test_two_passes_are_a_full_and_a_dropped_one(masking: dict[str, Any]) -> None:
    built, seen = network(masking), []
    built.trunk.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    Denoising(Gaussian())(built, Batch(x_t, cond), Rng.stream(0), keep_ratio=0.5)
    assert sorted(0 if subset is None else subset.keep.shape[1] for subset in seen) == [0, 8]
    seen.clear()
    Denoising(Gaussian())(built, Batch(x_t, cond), Rng.stream(0))
    assert seen == [None]


def test_the_share_of_kept_tokens_has_the_published_range() -> None:
    objective, x_0 = Denoising(Gaussian(), keep_spread=0.2), torch.zeros(1, 256, 1)
    kept = [objective._subset(x_0, 0.7, Rng.stream(i)).keep.shape[1] for i in range(200)]
    low, high = GOLDEN["mdtv2 keep range for r~U[.3,.5)"]
    assert low <= min(kept) < low + 3
    assert high - 3 < max(kept) <= high


@each("version, depth", [(2, 3), (2, 6), (1, 6)])
def test_an_encoder_of_no_or_an_odd_number_of_blocks_is_refused(version: int, depth: int) -> None:
    with pytest.raises(SpecError, match=r"6 blocks less . of the decoder leave"):
        network({"version": version, "depth": depth})
    with pytest.raises(SpecError, match="needs depth 1 or more, got 0"):
        network({"version": version, "depth": 0})


def test_it_stays_on_its_grid() -> None:
    with pytest.raises(ValueError, match=r"its grid \(4, 4\) and cannot change to \(8, 8\)"):
        network(VERSIONS["1"]).set_grid((8, 8))
    change_grid(network(VERSIONS["1"]), (4, 4))

"""Laws of the numbers of layers: coding rate, sparsity, entropy, silent heads, subspaces of variance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from maskgen.core.rng import Rng
from maskgen.evaluation.probes.layers import (
    attention_entropy,
    coding_rate,
    layer_states,
    report_layers,
    silenced_heads,
)
from maskgen.evaluation.probes.representation import PIXELS
from maskgen.evaluation.probes.variance import VarianceSubspace, within
from maskgen.models import MODELS

x_0 = Rng.stream("x").normal((3, 16, 6))
SMALL = {"width": 16, "depth": 2, "heads": 2}


def network(kind: str) -> Any:
    torch.manual_seed(0)
    decoder = {"decoder": {"type": "joint", "width": 8, "depth": 1, "heads": 2}} if kind == "mae" else {}
    return MODELS.build({"type": kind, **SMALL, **decoder}, token_width=6, grid=(4, 4)).eval()


def test_the_coding_rate_is_that_of_its_singular_values_and_ignores_rotations_and_lengths() -> None:
    z = Rng.stream("z").normal((2, 5, 8)).double()
    unit = z / z.norm(dim=-1, keepdim=True)
    singular = torch.linalg.svdvals(unit)
    expected = (1 + 8 / (5 * 0.01) * singular.square()).log().sum(-1) / 2
    assert torch.allclose(coding_rate(z), expected)
    turn = torch.linalg.qr(Rng.stream("turn").normal((8, 8)).double())[0]
    assert torch.allclose(coding_rate(3 * z @ turn), expected)


def test_equal_tokens_have_the_lowest_coding_rate_and_orthogonal_ones_the_highest() -> None:
    same, apart, random = torch.ones(4, 8), torch.eye(8)[:4], Rng.stream("random").normal((4, 8))
    assert float(coding_rate(same)) < float(coding_rate(random)) < float(coding_rate(apart))
    assert float(coding_rate(apart)) == pytest.approx(2 * math.log(1 + 2 / 0.01))


def test_the_entropy_of_attention_is_1_if_uniform_and_0_if_on_one_token() -> None:
    uniform, one = torch.full((2, 1, 5, 5), 0.2), torch.eye(5).expand(2, 1, -1, -1)
    assert attention_entropy(torch.cat([uniform, one], 1)).tolist() == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("kind", ["mae", "crate"])
def test_states_are_those_of_the_blocks_that_made_the_features(kind: str) -> None:
    model = network(kind)
    states = layer_states(model, lambda: model.features(x_0))
    assert len(states) == 2  # those of the encoder
    assert torch.equal(model.encoder.norm(states[-1].output)[:, 1:], model.features(x_0))
    for state in states:
        assert state.weights is not None
        assert torch.allclose(state.weights.sum(-1), torch.ones(3, 2, 17), atol=1e-5)
        assert (state.subspaces is not None) == (kind == "crate")
    if kind == "crate":
        block = model.encoder.blocks[1]
        assert torch.allclose(block.coding(block.coding_norm(states[1].mixed)), states[1].output)


@pytest.mark.parametrize("kind", ["mae", "crate"])
def test_a_head_without_weights_is_missed_by_nobody_and_others_are(kind: str) -> None:
    model = network(kind)
    with torch.no_grad():
        model.encoder.blocks[0].attention.out.weight[:, :8] = 0  # the first of two heads
    silenced = silenced_heads(model, lambda: model.features(x_0))
    assert len(silenced) == 2
    assert silenced[0][0] == 0
    assert min(silenced[0][1], *silenced[1]) > 0


def test_reports_of_crate_have_a_compression_and_zeros() -> None:
    model = network("crate")
    for report in report_layers(model, lambda: model.features(x_0)):
        assert report.compression is not None
        assert 0 < report.nonzero < 1
        assert len(report.entropy) == len(report.silenced) == 2


def test_top_and_bottom_share_the_image_between_them() -> None:
    images = Rng.stream("images").uniform((40, 1, 4, 4)).float() * torch.linspace(0.1, 1, 16).view(1, 1, 4, 4)
    top, bottom = VarianceSubspace.fit(images, "top", 0.7), VarianceSubspace.fit(images, "bottom", 0.3)
    assert top.basis.shape[1] + bottom.basis.shape[1] == 16
    whole = top(images) + bottom(images) - images.mean(0)
    assert torch.allclose(whole, images, atol=1e-5)
    assert torch.allclose(top(top(images)), top(images), atol=1e-5)
    held = top(images).flatten(1).var(0).sum() / images.flatten(1).var(0).sum()
    assert 0.7 <= float(held) < 0.9
    encoder = within(PIXELS, top, "digest")
    assert torch.allclose(encoder.network(images), top(images).flatten(1))
    assert encoder.identity != PIXELS.identity


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        VarianceSubspace.fit(torch.rand(4, 1, 2, 2), "top", share)

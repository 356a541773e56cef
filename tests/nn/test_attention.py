"""Laws of attention."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import nn

from maskgen.nn import attention as module
from maskgen.nn.attention import SelfAttention, attend, init_transformer, modulate, resolve_backend, zero
from maskgen.nn.embeddings import rotation_1d, rotation_2d


def test_attention_is_a_softmax_average_of_values() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    naive = torch.softmax(q @ k.mT / math.sqrt(8), -1) @ v
    torch.testing.assert_close(attend(q, k, v, "sdpa"), naive)


def test_a_masked_query_averages_over_what_it_may_see() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = (torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) < 0.5) | torch.eye(7, dtype=torch.bool)
    naive = torch.softmax((q @ k.mT / math.sqrt(8)).masked_fill(~mask, -torch.inf), -1) @ v
    torch.testing.assert_close(attend(q, k, v, "sdpa", mask=mask), naive)


def test_causal_is_the_lower_triangle() -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    triangle = torch.ones(7, 7, dtype=torch.bool).tril()
    torch.testing.assert_close(attend(q, k, v, "sdpa", mask="causal"), attend(q, k, v, "sdpa", mask=triangle))


@pytest.mark.parametrize("qk_norm", [False, True])
def test_self_attention_is_its_definition(qk_norm: bool) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(8, 2, qk_norm=qk_norm).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    heads = []
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        q, k, v = (part[..., rows] for part in layer.qkv(x).split(8, -1))
        q, k = layer.q_norm(q), layer.k_norm(k)
        heads.append(torch.softmax(q @ k.mT / 2, -1) @ v)
    torch.testing.assert_close(layer(x), layer.out(torch.cat(heads, -1)))


@pytest.mark.parametrize("rotated", [False, True])
def test_tokens_that_move_with_their_positions_move_their_answers(rotated: bool) -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2), torch.randn(2, 6, 8)
    rotation = rotation_2d((2, 3), 4) if rotated else None
    order = torch.randperm(6)
    moved = layer(x[:, order], None if rotation is None else rotation[order])
    torch.testing.assert_close(moved, layer(x, rotation)[:, order])


def test_a_rotation_for_every_row_is_taken_row_by_row() -> None:
    torch.manual_seed(0)
    layer, x, rotation = SelfAttention(8, 2), torch.randn(2, 6, 8), rotation_2d((2, 6), 4)
    both = torch.stack([rotation[:6], rotation[3:9]])
    together = layer(x, both)
    for row in range(2):
        torch.testing.assert_close(together[row : row + 1], layer(x[row : row + 1], both[row]))


@pytest.mark.parametrize("n_past", [1, 4, 6])
def test_attention_that_goes_on_from_a_past_is_attention_to_the_whole(n_past: int) -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, qk_norm=True, bias=False).double(), torch.randn(2, 7, 8, dtype=torch.float64)
    rotation, mask = rotation_1d(torch.arange(7), 4), torch.ones(7, 7, dtype=torch.bool).tril()
    whole, (keys, values) = layer.extend(x, rotation, "causal")
    past = layer.extend(x[:, :n_past], rotation[:n_past], "causal")[1]
    rest, new = layer.extend(x[:, n_past:], rotation[n_past:], mask[n_past:], past)
    torch.testing.assert_close(rest, whole[:, n_past:])
    torch.testing.assert_close(new, (keys[:, :, n_past:], values[:, :, n_past:]))
    torch.testing.assert_close(past, (keys[:, :, :n_past], values[:, :, :n_past]))


def test_in_a_text_only_the_distance_counts() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2), torch.randn(2, 6, 8)
    here, there, wide = (
        layer(x, rotation_1d(places, 4)) for places in (torch.arange(6), torch.arange(6) + 9, torch.arange(6) * 2)
    )
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(here, wide, atol=1e-5)


def test_projections_have_a_bias_only_if_asked_for() -> None:
    assert [name for name, _ in SelfAttention(8, 2, bias=False).named_parameters()] == ["qkv.weight", "out.weight"]
    assert sum(name.endswith("bias") for name, _ in SelfAttention(8, 2).named_parameters()) == 2


def test_dropout_is_for_training() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_a_width_that_heads_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of heads, both positive, got width 10 and heads 4"):
        SelfAttention(10, 4)


def test_auto_is_sdpa() -> None:
    assert resolve_backend("auto") == resolve_backend("sdpa") == "sdpa"


@pytest.mark.parametrize(
    ("is_installed", "message"), [(False, "not installed; pip install"), (True, "no CUDA; use auto")]
)
def test_xformers_where_it_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, is_installed: bool, message: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if is_installed else None)
    monkeypatch.setattr(module, "has_cuda", lambda: False)
    with pytest.raises(ValueError, match=f"attention xformers: .*{message}"):
        SelfAttention(8, 2, backend="xformers")


def test_initialisation_is_cut_at_two_deviations_and_biases_are_zero() -> None:
    network = nn.Sequential(nn.Embedding(100, 50), nn.Linear(50, 60), nn.LayerNorm(60)).requires_grad_(False)
    init_transformer(network)
    for weight in (network[0].weight, network[1].weight):
        assert float(weight.abs().max()) <= 0.04
        assert float(weight.std()) == pytest.approx(0.0176, rel=0.05)  # 0.02 before the cut
    assert not network[1].bias.any()
    assert bool((network[2].weight == 1).all())


def test_a_zeroed_layer_answers_nothing() -> None:
    assert not zero(nn.Linear(3, 4))(torch.randn(2, 3)).any()


def test_modulation_scales_and_shifts() -> None:
    x, shift, scale = torch.randn(2, 5, 4), torch.randn(2, 1, 4), torch.randn(2, 1, 4)
    torch.testing.assert_close(modulate(x, shift, scale), x * (1 + scale) + shift)
    assert torch.equal(modulate(x, torch.zeros_like(shift), torch.zeros_like(scale)), x)

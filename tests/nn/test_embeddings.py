"""Laws of positions, times and labels."""

from __future__ import annotations

import pytest
import torch

from maskgen.nn.embeddings import LabelEmbedding, TimeEmbedding
from maskgen.nn.mixers.rotary import rotate, rotation_1d, rotation_2d
from tests.cases import each


def test_rotary_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    grid, q, k = (5, 6), torch.randn(8), torch.randn(8)
    rotation = rotation_2d(grid, 8)
    q_at, k_at = (rotate(x.expand(1, 1, 30, 8), rotation)[0, 0].view(5, 6, 8) for x in (q, k))
    for rows, columns in ((1, 2), (0, 3), (2, 0)):
        products = (q_at[: 5 - rows, : 6 - columns] * k_at[rows:, columns:]).sum(-1)
        torch.testing.assert_close(products, products[:1, :1].expand_as(products), atol=1e-5, rtol=1e-5)


def test_rows_and_columns_turn_halves_of_their_own() -> None:
    rotation = rotation_2d((3, 4), 8).view(3, 4, 4)
    assert torch.equal(rotation[:, 0, :2], rotation[:, 3, :2])
    assert torch.equal(rotation[0, :, 2:], rotation[2, :, 2:])
    assert not torch.equal(rotation[0, 0, :2], rotation[1, 0, :2])


def test_rotation_keeps_lengths_and_type() -> None:
    x = torch.randn(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(x, rotation_2d((3, 4), 8)).norm(dim=-1), x.norm(dim=-1))
    assert rotate(x.bfloat16(), rotation_2d((3, 4), 8)).dtype == torch.bfloat16


def test_the_origin_does_not_turn() -> None:
    assert torch.equal(rotation_2d((2, 2), 4)[0], torch.ones(2, dtype=torch.complex64))


@each("dim", [2, 6, 7])
def test_a_width_that_two_axes_cannot_share_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4, got {dim}"):
        rotation_2d((2, 2), dim)


def test_a_negative_label_is_the_row_for_none() -> None:
    layer = LabelEmbedding(3, 5)
    assert layer.weight.shape == (4, 5)
    assert torch.equal(layer(torch.tensor([-1, 0, 2])), layer.weight[[3, 0, 2]])


def test_rotary_products_of_a_text_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k, rotation = torch.randn(8), torch.randn(8), rotation_1d(torch.arange(20), 8)
    q_at, k_at = (rotate(x.expand(1, 1, 20, 8), rotation)[0, 0] for x in (q, k))
    for distance in (0, 1, 5, 13):
        products = (q_at[: 20 - distance] * k_at[distance:]).sum(-1)
        torch.testing.assert_close(products, products[:1].expand_as(products), atol=1e-5, rtol=1e-5)


def test_each_pair_of_a_head_turns_at_its_own_speed() -> None:
    rotation = rotation_1d(torch.tensor([0, 3]), 8, base=16.0)
    assert rotation.dtype == torch.complex64
    assert torch.equal(rotation[0], torch.ones(4, dtype=torch.complex64))
    torch.testing.assert_close(rotation[1].angle(), 3 * torch.tensor([1, 1 / 2, 1 / 4, 1 / 8]))


def test_a_place_turns_the_same_whatever_stands_around_it() -> None:
    places = torch.tensor([4, 0, 17, 4])
    assert torch.equal(rotation_1d(places, 6), rotation_1d(torch.arange(18), 6)[places])


def test_an_odd_head_width_cannot_turn() -> None:
    with pytest.raises(ValueError, match="even head width, got 5"):
        rotation_1d(torch.arange(3), 5)


def waves_of(layer: TimeEmbedding, t: torch.Tensor) -> torch.Tensor:
    """What the layers after the cosines and sines are given."""
    given: list[torch.Tensor] = []
    layer.mlp.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert layer(t).shape == (len(t), 5)
    return given[0]


def test_a_time_is_cosines_then_sines_of_a_thousand_times_it() -> None:
    waves = waves_of(TimeEmbedding(5, 8), torch.tensor([0.0, 0.25], dtype=torch.float64))
    assert torch.equal(waves[0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    angles = 250 * torch.tensor([1, 0.1, 0.01, 0.001])
    torch.testing.assert_close(waves[1], torch.cat([angles.cos(), angles.sin()]), atol=1e-4, rtol=0)


def test_times_that_differ_by_a_thousandth_are_told_apart() -> None:
    waves = waves_of(TimeEmbedding(5), torch.linspace(0, 1, 1001))
    assert float(torch.cdist(waves, waves).fill_diagonal_(torch.inf).min()) > 0.5

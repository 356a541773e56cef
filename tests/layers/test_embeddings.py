"""Laws of positions and labels."""

from __future__ import annotations

import pytest
import torch

from maskgen.layers.embeddings import LabelEmbedding, rotate, rotation_2d


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


@pytest.mark.parametrize("dim", [2, 6, 7])
def test_a_width_that_two_axes_cannot_share_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4, got {dim}"):
        rotation_2d((2, 2), dim)


def test_a_negative_label_is_the_row_for_none() -> None:
    layer = LabelEmbedding(3, 5)
    assert layer.weight.shape == (4, 5)
    assert torch.equal(layer(torch.tensor([-1, 0, 2])), layer.weight[[3, 0, 2]])

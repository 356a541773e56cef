"""The relative position bias, and attention that learns it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.nn.mixers.attention import attend
from maskgen.nn.mixers.biased import BiasedAttention
from maskgen.nn.mixers.relative import RelativeBias, SharedBias, class_index, relative_index
from tests.cases import each

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())


def test_the_index_is_the_published_one() -> None:
    index = relative_index((16, 16))[0]
    places = [(0, 0), (0, 1), (0, 16), (0, 255), (255, 0)]
    assert [int(index[place]) for place in places] == GOLDEN["relpos_index[0,0],[0,1],[0,16],[0,255],[255,0]"]
    rows, highest, lowest = GOLDEN["relpos table rows / used max idx / min idx"]
    assert (len(RelativeBias((16, 16), 2).weight), int(index.max()), int(index.min())) == (rows, highest, lowest)


def test_pairs_that_lie_alike_share_a_row_and_no_others_do() -> None:
    height, width = grid = (3, 4)
    index = relative_index(grid)[0]
    places = [(row, column) for row in range(height) for column in range(width)]
    found: dict[tuple[int, int], set[int]] = {}
    for i, (row, column) in enumerate(places):
        for j, (row_2, column_2) in enumerate(places):
            found.setdefault((row - row_2, column - column_2), set()).add(int(index[i, j]))
    assert all(len(rows) == 1 for rows in found.values())
    assert len(set.union(*found.values())) == len(found) == (2 * height - 1) * (2 * width - 1)


def test_the_index_of_kept_tokens_is_that_of_all_at_their_places() -> None:
    subset, index = TokenSubset.draw(2, 12, 0.4, Rng.stream(0)), relative_index((3, 4))[0]
    kept = relative_index((3, 4), subset.keep)
    for row, keep in enumerate(subset.keep):
        assert torch.equal(kept[row], index[keep][:, keep])


def test_the_bias_is_the_table_read_by_the_index() -> None:
    bias, index = RelativeBias((3, 4), 2), relative_index((3, 4), torch.tensor([[0, 5, 7], [1, 2, 3]]))
    assert torch.equal(bias(index), bias.weight[index].permute(0, 3, 1, 2))


def given(n_biases: int) -> list[Tensor]:
    """q, k, v (3, 2, 5, 4) as attention makes them, and a bias (n, 2, 5, 5)."""
    rng = Rng.stream("biased")
    heads = [rng.normal((3, 5, 2, 4)).double().transpose(1, 2).requires_grad_() for _ in range(3)]
    return [*heads, rng.normal((2, n_biases, 5, 5)).double().transpose(0, 1).requires_grad_()]


@each("n_biases", [1, 3])
def test_biased_attention_is_sdpa_and_so_are_all_its_gradients(n_biases: int) -> None:
    inputs = given(n_biases)
    weight = Rng.stream("weight").normal((3, 2, 5, 4)).double()
    ours, theirs = BiasedAttention.apply(*inputs), F.scaled_dot_product_attention(*inputs[:3], attn_mask=inputs[3])
    torch.testing.assert_close(ours, theirs)
    pairs = zip(*(torch.autograd.grad((out * weight).sum(), inputs) for out in (ours, theirs)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other)


def test_a_bias_that_learns_goes_where_its_gradient_is_fast() -> None:
    q, k, v, bias = given(1)
    assert type(attend(q, k, v, "sdpa", mask=bias).grad_fn).__name__ == "BiasedAttentionBackward"
    assert type(attend(q, k, v, "sdpa", mask=bias.detach()).grad_fn).__name__ != "BiasedAttentionBackward"
    torch.testing.assert_close(attend(q, k, v, "sdpa", mask=bias), attend(q, k, v, "sdpa", mask=bias.detach()))


def test_a_class_token_has_the_last_three_rows_of_the_table() -> None:
    index = class_index((2, 3))[0]
    n_rows = 3 * 5 + 3
    assert torch.equal(index[1:, 1:], relative_index((2, 3))[0])
    assert (index[0, 1:] == n_rows - 3).all()
    assert (index[1:, 0] == n_rows - 2).all()
    assert index[0, 0] == n_rows - 1
    bias = SharedBias((2, 3), 4)
    assert bias().shape == (1, 4, 7, 7)
    assert list(bias.state_dict()) == ["weight"]

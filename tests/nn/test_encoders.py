"""Laws of encoders that see visible tokens only, and of the decoder over all."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.core.subset import TokenSubset
from maskgen.nn.decoders import JointDecoder
from maskgen.nn.encoders import VisibleEncoder
from maskgen.nn.published_blocks import ViTSizes

WIDTH, LENGTH, PREFIX = 8, 6, 2


def encoder() -> VisibleEncoder:
    torch.manual_seed(0)
    return VisibleEncoder(ViTSizes(WIDTH, 2, 2)).eval()


def tokens(n: int = 3) -> Tensor:
    return torch.randn(n, PREFIX + LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


SEEN = torch.tensor(
    [[True, False, True, True, False, False], [False, True, False, False, False, False], [True] * 6], dtype=torch.bool
)


def test_what_is_not_visible_cannot_matter() -> None:
    x, network = tokens(), encoder()
    other = x.clone()
    other[:, PREFIX:][~SEEN] = 100.0
    subset = TokenSubset.of(SEEN)
    meant = torch.cat([torch.ones(3, PREFIX, dtype=torch.bool), subset.valid], 1)  # type: ignore[list-item]
    assert torch.equal(network(x, subset)[meant], network(other, subset)[meant])


def test_a_row_is_encoded_alike_beside_rows_that_see_more() -> None:
    x, network = tokens(), encoder()
    together = network(x, TokenSubset.of(SEEN))
    for row, seen in enumerate(SEEN):
        alone = network(x[row : row + 1], TokenSubset.of(seen[None]))
        assert torch.allclose(together[row : row + 1, : alone.shape[1]], alone, atol=1e-6)


def test_to_see_all_is_the_plain_pass() -> None:
    x, network = tokens(), encoder()
    assert torch.allclose(network(x, None), network(x, TokenSubset.of(torch.ones(3, LENGTH, dtype=torch.bool))))


def test_the_decoder_puts_what_was_seen_in_its_place_and_the_fill_elsewhere() -> None:
    torch.manual_seed(0)
    decoder = JointDecoder(WIDTH, ViTSizes(WIDTH, 1, 2)).eval()
    decoder.blocks = torch.nn.ModuleList()
    decoder.norm = torch.nn.Identity()  # type: ignore[assignment]
    x, subset, fill = tokens(), TokenSubset.of(SEEN), torch.full((WIDTH,), 7.0)
    encoded = torch.cat([x[:, :PREFIX], subset.gather(x[:, PREFIX:])], 1)
    positions = torch.randn(PREFIX + LENGTH, WIDTH)
    decoded = decoder(encoded, positions, fill, subset) - positions
    expected = torch.cat([decoder.project(x)[:, :PREFIX], decoder.project(x)[:, PREFIX:]], 1)
    expected[:, PREFIX:][~SEEN] = fill
    assert torch.allclose(decoded, expected, atol=1e-6)
    also = torch.zeros_like(SEEN)
    also[:, 0] = True
    filled = decoder(encoded, positions, fill, subset, also) - positions
    assert torch.allclose(filled[:, PREFIX], fill.expand(3, WIDTH), atol=1e-6)


def test_a_subset_of_rows_with_different_counts_says_which_positions_are_meant() -> None:
    subset = TokenSubset.of(SEEN)
    assert subset.keep.shape == (3, 6)
    assert torch.equal(subset.is_kept(), SEEN)
    x = tokens()[:, PREFIX:]
    whole = subset.scatter(subset.gather(x), -1.0)
    assert torch.equal(whole, torch.where(SEEN[..., None], x, -1.0))
    numbers = torch.arange(LENGTH).expand(3, -1)
    assert torch.equal(subset.scatter(subset.gather(numbers), 9), torch.where(SEEN, numbers, 9))


def test_a_subset_of_nothing_keeps_one_place_that_is_not_meant() -> None:
    subset = TokenSubset.of(torch.zeros(2, 4, dtype=torch.bool))
    assert subset.keep.shape == (2, 1)
    assert not subset.is_kept().any()

"""Patches of pixels: nothing is lost."""

from __future__ import annotations

import pytest
import torch

from maskgen.core.rng import Rng
from maskgen.tokenizers.image.patches import PatchTokenizer, patchify, unpatchify

images = Rng.stream("images").uniform((2, 3, 8, 12)).float()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_decoding_undoes_encoding(size: int) -> None:
    tokenizer = PatchTokenizer((3, 8, 12), size)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (2, 8 * 12 // size**2, 3 * size**2)
    assert (tokenizer.grid, tokenizer.token_width, not tokenizer.has_discrete_tokens) == (
        (8 // size, 12 // size),
        3 * size**2,
        True,
    )
    assert torch.allclose(tokenizer.decode(tokens), images, atol=1e-6)
    assert -1 <= float(tokens.min()) < float(tokens.max()) <= 1


def test_a_token_is_one_patch_channels_first_rows_first() -> None:
    tokens = patchify(images, 4)
    assert torch.equal(tokens[1, 4], images[1, :, 4:8, 4:8].flatten())
    assert torch.equal(unpatchify(tokens, (2, 3), 4), images)


def test_a_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="size must divide both sides"):
        PatchTokenizer((1, 28, 28), 3)


def test_fingerprints_tell_sizes_apart() -> None:
    prints = {PatchTokenizer((1, 8, 8), size).fingerprint() for size in (1, 2, 4)}
    assert len(prints) == 3

"""Laws of pixels as tokens."""

from __future__ import annotations

import pytest
import torch

from maskgen.tokenizers import TOKENIZERS, ImageTokenizer


def build(levels: int, shape: tuple[int, int, int] = (1, 3, 4)) -> ImageTokenizer:
    return TOKENIZERS.build({"type": "pixels", "levels": levels}, image_shape=shape)


@pytest.mark.parametrize("levels", [2, 3, 16, 17, 256])
def test_every_token_survives_the_round_trip(levels: int) -> None:
    tokenizer = TOKENIZERS.build({"type": "pixels", "levels": levels}, image_shape=(1, 1, levels))
    tokens = torch.arange(levels)[None]
    images = tokenizer.decode(tokens)
    assert images.shape == (1, 1, 1, levels)
    assert torch.equal(tokenizer.encode(images), tokens)
    assert (float(images.min()), float(images.max())) == (0, 1)


def test_bytes_survive_256_levels() -> None:
    tokenizer = TOKENIZERS.build({"type": "pixels", "levels": 256}, image_shape=(1, 16, 16))
    images = torch.arange(256).view(1, 1, 16, 16)
    assert torch.equal((tokenizer.decode(tokenizer.encode(images / 255)) * 255).round().long(), images)


def test_a_pixel_becomes_the_nearest_level_and_stays_within_the_vocabulary() -> None:
    tokenizer = TOKENIZERS.build({"type": "pixels", "levels": 5}, image_shape=(1, 1, 5))
    tokens = tokenizer.encode(torch.tensor([-1, 0.12, 0.13, 0.9, 2]).view(1, 1, 1, 5))
    assert tokens.tolist() == [[0, 0, 1, 4, 4]]


def test_tokens_are_read_row_by_row() -> None:
    tokenizer = TOKENIZERS.build({"type": "pixels", "levels": 256}, image_shape=(1, 3, 4))
    images = torch.arange(12).view(1, 1, 3, 4) / 255
    assert tokenizer.grid == (3, 4)
    assert tokenizer.encode(images).tolist() == [list(range(12))]


@pytest.mark.parametrize("levels", [1, 257])
def test_a_number_of_levels_that_bytes_do_not_have_is_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"levels must be 2 to 256, got {levels}"):
        build(levels)


def test_colours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 channel\), got 3"):
        build(4, (3, 4, 4))


def test_the_fingerprint_tells_levels_apart() -> None:
    prints = {build(levels, shape).fingerprint() for levels in (4, 5) for shape in ((1, 3, 4), (1, 4, 3))}
    assert len(prints) == 4
    assert build(4).fingerprint() == build(4).fingerprint()

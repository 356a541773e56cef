"""Cached posteriors of latents: moments of every image and its mirror, and nobody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from maskgen.core.rng import Rng
from maskgen.data.base import DATASETS, ImageSplit
from maskgen.data.image.latents import latent_data
from maskgen.tokenizers import TOKENIZERS
from maskgen.tokenizers.image.latent import KLTokenizer, draw_latents


def autoencoder(path: Path, seed: int = 0, **more: Any) -> KLTokenizer:
    """A tiny one over the 8 x 8 digits, 4 x 4 latents."""
    torch.manual_seed(seed)
    AutoencoderKL(
        in_channels=1, out_channels=1, latent_channels=2, scaling_factor=0.5, norm_num_groups=2,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).save_pretrained(path)  # fmt: skip
    built = TOKENIZERS.build({"type": "autoencoder_kl", "source": str(path), **more}, image_shape=(1, 8, 8))
    assert isinstance(built, KLTokenizer)
    return built.eval()


@pytest.fixture
def digits() -> ImageSplit:
    split: ImageSplit = DATASETS.build("digits").split("test")  # type: ignore[union-attr]
    return split


def test_moments_are_those_of_the_image_and_of_its_mirror(digits: ImageSplit, tmp_path: Path) -> None:
    tokenizer = autoencoder(tmp_path / "vae", patch=2)
    data = latent_data(digits, tokenizer, has_flips=True, cache_dir=tmp_path / "cache", progress=False)
    moments, labels = data.__getitems__([3, 7])
    images = digits.__getitems__([3, 7])[0].float() / 255
    assert moments.shape == (2, 2, 4, 16)  # both views, 2 x 2 patches of 2 channels, mean and deviation
    with torch.no_grad():
        expected = torch.stack([tokenizer.moments(images), tokenizer.moments(images.flip(-1))], 1)
    assert torch.allclose(moments, expected, atol=2e-3)  # kept as float16
    assert torch.equal(labels, digits.labels[[3, 7]])
    assert torch.equal(data[3][0], moments[0])
    assert not torch.allclose(moments[:, 0], moments[:, 1], atol=1e-2)


def test_a_draw_has_the_mean_and_the_deviation_that_are_kept() -> None:
    moments = torch.cat([torch.full((4000, 1, 2), 0.5), torch.full((4000, 1, 2), 0.2)], -1)
    drawn = draw_latents(moments, Rng.stream(0))
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(drawn.std()) == pytest.approx(0.2, rel=0.03)


def test_the_mean_is_what_encode_gives_and_decoding_takes(digits: ImageSplit, tmp_path: Path) -> None:
    tokenizer = autoencoder(tmp_path / "vae", patch=2)
    images = digits.__getitems__([0, 1])[0].float() / 255
    with torch.no_grad():
        tokens = tokenizer.encode(images)
        whole = autoencoder(tmp_path / "vae").encode(images)
    assert torch.allclose(tokens, tokenizer.moments(images).chunk(2, -1)[0])
    assert (tokens.shape, tokenizer.token_width, tokenizer.grid) == ((2, 4, 8), 8, (2, 2))
    assert torch.allclose(tokenizer.decode(tokens), autoencoder(tmp_path / "vae").decode(whole), atol=1e-5)


def test_it_is_made_once_and_again_for_another_autoencoder_patch_or_flip(digits: ImageSplit, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def make(has_flips: bool = False, **arguments: Any) -> Path:
        tokenizer = autoencoder(tmp_path / "vae", **arguments)
        return latent_data(digits, tokenizer, has_flips=has_flips, cache_dir=cache, progress=False).file

    first = make()
    written = first.stat().st_mtime_ns
    assert make() == first
    assert first.stat().st_mtime_ns == written
    assert len({first, make(seed=1), make(patch=2), make(has_flips=True)}) == 4


def test_the_cache_says_what_it_is_and_a_damaged_one_is_made_again(digits: ImageSplit, tmp_path: Path) -> None:
    tokenizer, cache = autoencoder(tmp_path / "vae"), tmp_path / "cache"
    file = latent_data(digits, tokenizer, cache_dir=cache, progress=False).file
    header = json.loads(file.with_suffix(".json").read_text())
    assert header["autoencoder"] == str(tmp_path / "vae")
    assert header["scale"] == 0.5
    assert {"crc32", "tokenizer", "data", "moments"} <= set(header)
    whole = file.read_bytes()
    file.write_bytes(whole[:-2] + b"xx")
    assert latent_data(digits, tokenizer, cache_dir=cache, progress=False).file.read_bytes() == whole


def test_a_patch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patch must divide both sides of the 4 x 4 latents, got 3"):
        autoencoder(tmp_path / "vae", patch=3)

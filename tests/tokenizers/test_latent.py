"""The tokenizers of diffusers answer as diffusers does, on tiny networks saved to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, VQModel

from maskgen.tokenizers import TOKENIZERS, ImageTokenizer
from maskgen.tokenizers.image.latent import sizes_without_weights
from maskgen.tokenizers.image.patches import unpatchify

SHAPE = (3, 16, 24)
SIZES: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}


@pytest.fixture(scope="module")
def vq(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    net = VQModel(num_vq_embeddings=11, vq_embed_dim=4, latent_channels=4, **SIZES).eval()
    torch.nn.init.normal_(net.quantize.embedding.weight)
    path = tmp_path_factory.mktemp("vq")
    net.save_pretrained(path / "vqvae")
    return path, net


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    net = AutoencoderKL(latent_channels=4, scaling_factor=0.5, shift_factor=0.25, **SIZES).eval()
    path = tmp_path_factory.mktemp("kl")
    net.save_pretrained(path)
    return path, net


def build(name: str, path: Path, shape: tuple[int, int, int] = SHAPE, **arguments: str) -> ImageTokenizer:
    return TOKENIZERS.build({"type": name, "source": str(path), **arguments}, image_shape=shape).eval()


def images() -> torch.Tensor:
    return torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pixel_range", ["zero_one", "minus_one_one"])
@torch.no_grad()
def test_vq_reconstructs_as_diffusers_does(vq: tuple[Path, Any], pixel_range: str) -> None:
    path, net = vq
    tokenizer = build("diffusers_vq", path, subfolder="vqvae", pixel_range=pixel_range)
    tokens = tokenizer.encode(images())
    assert (tokens.shape, tokens.dtype) == ((2, 96), torch.int64)
    assert (tokenizer.vocab_size, tokenizer.grid) == (11, (8, 12))
    assert len(tokens.unique()) > 1
    wanted = net(images()).sample if pixel_range == "zero_one" else (net(2 * images() - 1).sample + 1) / 2
    torch.testing.assert_close(tokenizer.decode(tokens), wanted.clamp(0, 1))


@torch.no_grad()
def test_kl_reconstructs_as_diffusers_does(kl: tuple[Path, Any]) -> None:
    path, net = kl
    tokenizer = build("autoencoder_kl", path)
    latents = tokenizer.encode(images())
    posterior = net.encode(2 * images() - 1).latent_dist
    assert latents.shape == (2, 96, 4)
    assert tokenizer.vocab_size == 0
    torch.testing.assert_close(latents, ((posterior.mean - 0.25) * 0.5).flatten(2).mT)
    torch.testing.assert_close(tokenizer.decode(latents), ((net.decode(posterior.mean).sample + 1) / 2).clamp(0, 1))


@torch.no_grad()
def test_dc_reconstructs_as_diffusers_does_and_has_no_spread(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_block_out_channels": (8, 8, 8), f"{side}_layers_per_block": (1, 1, 1)}
        sizes |= {f"{side}_qkv_multiscales": ((), (), ())}
    net = AutoencoderDC(latent_channels=4, scaling_factor=0.5, **sizes).eval()
    net.save_pretrained(tmp_path)
    shape = (3, 16, 24)
    tokenizer = build("autoencoder_dc", tmp_path, shape, patch=2)  # type: ignore[arg-type]
    sizes_found = sizes_without_weights("autoencoder_dc", shape, {"source": str(tmp_path), "patch": 2})
    assert sizes_found == tokenizer.sizes() == {"vocab_size": 0, "token_width": 16, "grid": (2, 3)}
    tokens = tokenizer.encode(images())
    latents = net.encode(2 * images() - 1).latent
    torch.testing.assert_close(unpatchify(tokens, (2, 3), 2), latents * 0.5)
    torch.testing.assert_close(tokenizer.decode(tokens), ((net.decode(latents).sample + 1) / 2).clamp(0, 1))
    assert not tokenizer.moments(images())[..., 16:].any()  # type: ignore[operator]


def test_nothing_in_them_is_trained(vq: tuple[Path, Any], kl: tuple[Path, Any]) -> None:
    for tokenizer in (build("diffusers_vq", vq[0], subfolder="vqvae"), build("autoencoder_kl", kl[0])):
        assert not tokenizer.has_parameters()
        assert not any(parameter.requires_grad for parameter in tokenizer.parameters())


def test_the_fingerprint_knows_the_pixel_range(vq: tuple[Path, Any]) -> None:
    first, again, other = (
        build("diffusers_vq", vq[0], subfolder="vqvae", pixel_range=pixel_range).fingerprint()
        for pixel_range in ("zero_one", "zero_one", "minus_one_one")
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 16, 16), "takes 3 channels, the data have 1"), ((3, 16, 15), r"multiples of 2, the data have \(16, 15\)")],
)
def test_images_that_do_not_fit_are_refused(vq: tuple[Path, Any], shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("diffusers_vq", vq[0], shape, subfolder="vqvae")


def test_a_folder_that_is_not_there_never_asks_the_network() -> None:
    with pytest.raises(FileNotFoundError, match=r"no directory './gone'"):
        TOKENIZERS.build({"type": "autoencoder_kl", "source": "./gone"}, image_shape=SHAPE)

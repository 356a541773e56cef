"""Tokenizers of `diffusers`, from a local folder or the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.files import local_path, read_json
from maskgen.core.hub import hub_or_folder, without_advice
from maskgen.core.rng import Rng
from maskgen.tokenizers.base import TOKENIZERS, ImageTokenizer
from maskgen.tokenizers.image.patches import patchify, unpatchify

SLICE = 16
"""Images an autoencoder processes at once: its activations are hundreds of times the size of its latents."""

KNOWN: Mapping[str, Mapping[str, Any]] = {
    "stabilityai/sd-vae-ft-ema": {},
    "stabilityai/sd-vae-ft-mse": {},
    "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers": {"latent_channels": 32},
    "xwen99/mar-vae-kl16": {"block_out_channels": (128, 128, 256, 256, 512), "latent_channels": 16},
}
"""Configurations of autoencoders on the hub, where they differ from the defaults of their class."""

PixelRange = Literal["zero_one", "minus_one_one"]


class _DiffusersTokenizer(ImageTokenizer):
    """Base of all: loading, pixel range, and the grid of an image shape.

    Attributes:
        levels_key: the list in the network's configuration whose length is the number of resolutions.
    """

    levels_key: ClassVar[str] = "block_out_channels"

    def __init__(
        self, image_shape: tuple[int, int, int], model_class: str, source: str, subfolder: str, pixel_range: PixelRange
    ) -> None:
        super().__init__()
        import diffusers

        where: dict[str, str] = {"subfolder": subfolder} if subfolder else {}
        folder = hub_or_folder(source)
        try:
            self.net = getattr(diffusers, model_class).from_pretrained(folder, use_safetensors=True, **where)
        except (OSError, ValueError) as error:
            raise UserError(f"{source} cannot be loaded as {model_class}: {without_advice(error)}") from None
        self.net.requires_grad_(False)
        self.pixel_range = pixel_range
        factor = 2 ** (len(self.net.config[self.levels_key]) - 1)
        if image_shape[0] != self.net.config.in_channels:
            raise ValueError(f"{source} takes {self.net.config.in_channels} channels, the data have {image_shape[0]}")
        if image_shape[1] % factor or image_shape[2] % factor:
            raise ValueError(f"{source} needs sides that are multiples of {factor}, the data have {image_shape[1:]}")
        self.grid = (image_shape[1] // factor, image_shape[2] // factor)

    def has_parameters(self) -> bool:
        return False  # nothing that is trained here

    def extra_repr(self) -> str:
        return f"pixel_range={self.pixel_range}"

    def _to_net(self, images: Tensor) -> Tensor:
        return images if self.pixel_range == "zero_one" else 2 * images - 1

    def _from_net(self, images: Tensor) -> Tensor:
        return (images if self.pixel_range == "zero_one" else (images + 1) / 2).clamp(0, 1)


@TOKENIZERS.register("diffusers_vq")
class DiffusersVQ(_DiffusersTokenizer):
    """A `diffusers.VQModel`: aMUSEd's, LDM's vq-f8, MaskGIT-VQGAN conversions.

    Args:
        image_shape: (C, H, W).
        source: a folder or a hub id; `subfolder` inside it.
        pixel_range: of the network: `zero_one` (aMUSEd, MaskGIT) or `minus_one_one` (LDM, LlamaGen).
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        source: str,
        subfolder: str = "",
        pixel_range: PixelRange = "zero_one",
    ) -> None:
        super().__init__(image_shape, "VQModel", source, subfolder, pixel_range)
        self.vocab_size = self.net.config.num_vq_embeddings

    def encode(self, images: Tensor) -> Tensor:
        codes: Tensor = self.net.quantize(self.net.encode(self._to_net(images)).latents)[2][2]
        return codes.view(len(images), -1)

    def decode(self, tokens: Tensor) -> Tensor:
        shape = (len(tokens), *self.grid, self.net.quantize.vq_embed_dim)
        quantised = self.net.quantize.get_codebook_entry(tokens.flatten(), shape)
        hidden = self.net.post_quant_conv(quantised)
        is_spatial = self.net.config.norm_type == "spatial"
        return self._from_net(self.net.decoder(hidden, quantised if is_spatial else None))


@TOKENIZERS.register("autoencoder_kl")
class KLTokenizer(_DiffusersTokenizer):
    """A `diffusers.AutoencoderKL` (Stable Diffusion's): a token (D = C patch^2) is a patch of latents.

    Latents are shifted and scaled to about unit variance by the network's own configuration. `encode` returns the mean
    of the posterior; training stores `moments` and resamples at each use.

    Args:
        image_shape, source, subfolder: as for `diffusers_vq`.
        patch: side of a patch, in latents (DiT: 2).
    """

    has_discrete_tokens = False
    vocab_size = 0
    model_class: ClassVar[str] = "AutoencoderKL"
    default_levels: ClassVar[int] = 4
    default_channels: ClassVar[int] = 4

    def __init__(self, image_shape: tuple[int, int, int], source: str, subfolder: str = "", patch: int = 1) -> None:
        super().__init__(image_shape, self.model_class, source, subfolder, "minus_one_one")
        if patch < 1 or self.grid[0] % patch or self.grid[1] % patch:
            raise ValueError(
                f"patch must divide both sides of the {self.grid[0]} x {self.grid[1]} latents, got {patch}"
            )
        self.scale = float(self.net.config.scaling_factor)
        self.shift = float(self.net.config.get("shift_factor") or 0.0)
        self.source, self.patch = source, patch
        self.token_width, self.patch_area = self.net.config.latent_channels * patch**2, patch**2
        self.grid = (self.grid[0] // patch, self.grid[1] // patch)

    @classmethod
    def sizes_of(
        cls,
        image_shape: tuple[int, int, int],
        source: str,
        subfolder: str = "",
        patch: int = 1,
        latent_channels: int | None = None,
    ) -> dict[str, Any]:
        """`sizes` without the weights: of an autoencoder in a folder or `KNOWN`, else those of Stable Diffusion's."""
        file = local_path(source) / subfolder / "config.json"
        config = read_json(file) if file.is_file() else KNOWN.get(source, {})
        side = 2 ** (len(config.get(cls.levels_key, range(cls.default_levels))) - 1) * patch
        channels = config.get("latent_channels", latent_channels or cls.default_channels)
        grid = (image_shape[1] // side, image_shape[2] // side)
        return {"vocab_size": 0, "token_width": channels * patch**2, "grid": grid}

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, patch={self.patch}, scale={self.scale}, shift={self.shift}"

    def moments(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, L, 2 D): mean and standard deviation of each number, scaled."""
        if len(images) > SLICE:
            return torch.cat([self.moments(part) for part in images.split(SLICE)])
        mean, std = self._posterior(self._to_net(images))
        both = torch.cat([(mean - self.shift) * self.scale, std * self.scale])
        return torch.cat(patchify(both, self.patch).chunk(2), -1)

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of latents (B, C, h, w)."""
        posterior = self.net.encode(images).latent_dist
        return posterior.mean, posterior.std

    def encode(self, images: Tensor) -> Tensor:
        return self.moments(images)[..., : self.token_width]

    def decode(self, tokens: Tensor) -> Tensor:
        if len(tokens) > SLICE:
            return torch.cat([self.decode(part) for part in tokens.split(SLICE)])
        latents = unpatchify(tokens, self.grid, self.patch) / self.scale + self.shift
        with torch.no_grad():
            return self._from_net(self.net.decode(latents).sample)


@TOKENIZERS.register("autoencoder_dc")
class DCTokenizer(KLTokenizer):
    """A `diffusers.AutoencoderDC` (DC-AE, arXiv 2410.10733): as `autoencoder_kl`, 32 or 64 pixels to a latent.

    It has no posterior: the standard deviation in `moments` is 0.
    """

    model_class = "AutoencoderDC"
    levels_key = "encoder_block_out_channels"
    default_levels = 6
    default_channels = 32

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.net.encode(images).latent
        return latents, torch.zeros_like(latents)


def draw_latents(moments: Tensor, rng: Rng) -> Tensor:
    """Tokens (B, L, D) sampled from the posterior with `KLTokenizer.moments` (B, L, 2 D)."""
    mean, std = moments.chunk(2, -1)
    return mean + std * rng.normal(mean.shape, device=mean.device)


def sizes_without_weights(
    name: str, image_shape: tuple[int, int, int], arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """`ImageTokenizer.sizes` of a tokenizer's entry, without its weights; None where only they tell them."""
    source = str(arguments.get("source", ""))
    is_known = source in KNOWN or (local_path(source) / str(arguments.get("subfolder", "")) / "config.json").is_file()
    entry = TOKENIZERS.get(name)
    if not is_known or not isinstance(entry, type) or not issubclass(entry, KLTokenizer):
        return None
    return entry.sizes_of(image_shape, **arguments)

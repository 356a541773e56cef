"""Images with the structure of a sketch: its tokens and its attention maps under a wanted class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.errors import UserError, unknown
from maskgen.core.pixels import to_float
from maskgen.core.predictions import Condition
from maskgen.core.rng import Rng
from maskgen.models.maskgit import MaskGIT
from maskgen.nn.prefix import prefix_order
from maskgen.nn.watched_attention import attending, watched_attention
from maskgen.pipelines.edit import Picture, as_picture
from maskgen.pipelines.generator import Generator
from maskgen.samplers.guidance import training_time
from maskgen.samplers.masked.loop import OnStep
from maskgen.samplers.masked.sketch import SketchSampler
from maskgen.schedules import Linear
from maskgen.tokenizers import ImageTokenizer


@dataclass(frozen=True)
class Sketch:
    """A sketch (C, H, W) uint8, how samples follow it, and the layers whose attention is compared (None for all)."""

    picture: Tensor
    sampler: SketchSampler = field(default_factory=SketchSampler)
    layers: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls, picture: Picture, image_shape: tuple[int, int, int], *, edges: bool = False, **arguments: Any
    ) -> Sketch:
        """A sketch as a user names it.

        Args:
            picture: see `Edit.of`.
            image_shape: (C, H, W) of the checkpoint's images.
            edges: take the edges of the picture, for a photograph.
            **arguments: of `SketchSampler`, and `layers`.

        Raises:
            UserError: a picture that cannot be read or does not fit; an unknown argument or a wrong value.
        """
        given = as_picture(picture, image_shape)
        layers = arguments.pop("layers", None)
        names = [one.name for one in fields(SketchSampler)]
        for key in arguments:
            if key not in names:
                raise UserError(unknown("argument of a sketch", key, [*names, "layers", "edges"]))
        if layers is not None and not (isinstance(layers, list | tuple) and all(type(one) is int for one in layers)):
            raise UserError(f"layers: a list of numbers from 0, such as [1,3], got {layers!r}")
        try:
            sampler = SketchSampler(**arguments)
        except (TypeError, ValueError) as error:
            raise UserError(f"sketch: {error}") from None
        return cls(edges_of(given) if edges else given, sampler, None if layers is None else tuple(layers))

    @torch.no_grad()
    def tokens(
        self, generator: Generator, seeds: Sequence[int], labels: Tensor | None, on_step: OnStep | None = None
    ) -> Tensor:
        """(B, L) int64, a row for each seed.

        Raises:
            UserError: a checkpoint without discrete tokens or without attention over them; a layer it does not have.
        """
        require_attention(generator)
        tokenizer, mask_id = generator.tokenizer, generator.tokenizer.vocab_size
        assert isinstance(tokenizer, ImageTokenizer)
        image = to_float(self.picture[None].to(generator.device))
        start = tokenizer.encode(image).expand(len(seeds), -1)
        cond = None if labels is None else Condition(labels.to(generator.device))
        time = training_time(Linear(), generator.schedule)
        denoise = generator.guidance.bind(generator.denoiser, cond, mask_id=mask_id, network_time=time)
        layers = self._chosen(attending(generator.denoiser))

        def maps(x: Tensor) -> Tensor:
            t = torch.zeros(len(x), device=x.device)
            found = watched_attention(layers, lambda: generator.denoiser(x, t, cond))
            return torch.cat([one[:, :, _rows(generator.denoiser, x.shape[1])] for one in found], 1)

        return self.sampler(denoise, maps, start, Rng.per_sample(seeds), mask_id=mask_id, on_step=on_step)

    def _chosen(self, layers: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
        if self.layers is None:
            return list(layers)
        for layer in self.layers:
            if not 0 <= layer < len(layers):
                raise UserError(f"layers: this network has layers 0 to {len(layers) - 1}, got {layer}")
        return [layers[layer] for layer in self.layers]


def require_attention(generator: Generator) -> None:
    """Check that a checkpoint can follow a sketch.

    Raises:
        UserError: it cannot.
    """
    tokenizer, network = generator.tokenizer, generator.denoiser
    if not isinstance(tokenizer, ImageTokenizer) or not tokenizer.has_discrete_tokens or generator.process is not None:
        raise UserError("a sketch needs a checkpoint of discrete image tokens (maskgit)")
    if not isinstance(network, MaskGIT) or not network.traits.has_attention_scores:
        name = type(network).__name__
        raise UserError(f"a sketch is followed by the attention maps of a MaskGIT; this checkpoint's {name} has none")


def edges_of(picture: Tensor) -> Tensor:
    """(C, H, W) uint8, bright where the picture changes: the largest Sobel gradient over channels, 255 at its peak."""
    image = F.pad(picture[None].double(), (1, 1, 1, 1), mode="replicate").transpose(0, 1)  # (C, 1, H + 2, W + 2)
    across = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]], dtype=torch.float64)
    kernels = torch.stack([across, across.T])[:, None]
    strength = F.conv2d(image, kernels).square().sum(1).sqrt().amax(0)
    scaled = 255 * strength / strength.max().clamp(min=1e-12)
    return scaled.round().to(torch.uint8).expand_as(picture).contiguous()


def _rows(network: MaskGIT, n_tokens: int) -> Tensor:
    """Places of the image's tokens in a row of the network, (L,)."""
    order = prefix_order(network.n_prefix, n_tokens, network.place)
    places = torch.arange(network.n_prefix + n_tokens) if order is None else order[0].argsort()
    return places[network.n_prefix :]

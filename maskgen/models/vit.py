"""A ViT that classifies images: what fine-tuning makes of a masked autoencoder."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from maskgen.core.check import CheckContext, under
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.decoders import class_and_grid
from maskgen.models.tables import Tables
from maskgen.models.trunks import init_trunk
from maskgen.nn.embeddings import require_sincos
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.mixers.relative import SharedBias
from maskgen.nn.published_blocks import ViTSizes
from maskgen.tokenizers.image.patches import patchify

Pool = Literal["mean", "class"]
Places = Literal["learned", "relative"]


@MODELS.register("vit")
class ViTClassifier(nn.Module):
    """ViT over a class token and patches, a pooled vector, a linear head (arXiv 2010.11929).

    Fine-tuned MAE and CrossMAE: `pool: mean` (their default) or `class`, `positions: learned`. Fine-tuned SimMIM:
    `positions: relative`, a table in each block, `layer_scale: 0.1`. Published sizes, width x depth, heads: B 768 x 12,
    12; L 1024 x 24, 16; H 1280 x 32, 16.

    Args:
        image_shape: (C, H, W) of the images.
        n_classes: number of logits.
        width, depth, heads, mlp_ratio, dropout: of the blocks.
        patch: side of a patch in pixels.
        pool: `mean` of the patches, then the norm; or the `class` token after the norm.
        positions: `learned`, starting as fixed sines and cosines; or a `relative` bias of each block's attention.
        layer_scale: start of a learned factor of each branch; 0 is none.
        attention: `auto`, `sdpa` or `xformers`.

    Raises:
        ValueError: a size that cannot be built.
    """

    traits = NetworkTraits(
        objectives=("classification",), tokens=(), streams=("image",), conditions=(), has_features=True,
        has_fixed_grid=True,
    )  # fmt: skip

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        n_classes: int,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        patch: int = 16,
        pool: Pool = "mean",
        positions: Places = "learned",
        layer_scale: float = 0.0,
        attention: AttentionBackend = "auto",
    ) -> None:
        super().__init__()
        channels, *sides = image_shape
        if patch < 1 or n_classes < 1 or any(side % patch for side in sides):
            raise ValueError(
                f"patch must be at least 1 and divide the image {sides[0]}x{sides[1]}, and n_classes at least 1, got "
                f"{patch} and {n_classes}"
            )
        grid = (sides[0] // patch, sides[1] // patch)
        self.patch, self.pool, self.grid = patch, pool, grid
        self.embedding = nn.Linear(channels * patch**2, width)
        self.class_token = nn.Parameter(torch.empty(width))
        is_relative = positions == "relative"
        self.positions = None if is_relative else nn.Parameter(torch.empty(1 + grid[0] * grid[1], width))
        sizes = ViTSizes(width, depth, heads, mlp_ratio, dropout, attention, layer_scale=layer_scale)
        self.blocks = sizes.blocks()
        self.biases = nn.ModuleList(SharedBias(grid, heads) for _ in range(depth)) if is_relative else None
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, n_classes)
        self._init()

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check the sizes of a recipe.

        Raises:
            ValueError: they are not possible.
        """
        try:
            require_sincos(ViTSizes.of(context.model).width)
        except ValueError as error:
            raise under("model", error) from None

    def _init(self) -> None:
        """MAE's start of fine-tuning; the head starts small, so that all classes are equally likely."""
        init_trunk(self)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)
        if self.positions is not None:
            with torch.no_grad():
                self.positions.copy_(class_and_grid(self.grid, self.grid, self.positions.shape[1]))

    def tables(self) -> Tables:
        """Rows of the head."""
        return {"head.weight": ("class",), "head.bias": ("class",)}

    def features(self, images: Tensor) -> Tensor:
        """Pooled vectors before the head: images (B, C, H, W) in [0, 1] -> (B, D)."""
        x = self.embedding(patchify(2 * images - 1, self.patch))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1)
        if self.positions is not None:
            x = x + self.positions
        for index, block in enumerate(self.blocks):
            x = block(x, mask=None if self.biases is None else self.biases[index]())
        pooled: Tensor = self.norm(x[:, 1:].mean(1) if self.pool == "mean" else x[:, 0])
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes: images (B, C, H, W) float in [0, 1] -> (B, n_classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits

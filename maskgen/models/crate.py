"""CRATE-MAE: a masked autoencoder whose layers are steps of compression and sparse coding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskgen.core.check import CheckContext, under
from maskgen.core.predictions import Condition, Point
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.decoders import class_and_grid, predicted_width
from maskgen.nn.crate import CrateDecoderBlock, CrateEncoderBlock, CrateSizes, CrateStack
from maskgen.nn.embeddings import require_sincos
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.processes import is_mask


@MODELS.register("crate")
class CRATE(nn.Module):
    """Patches (B, L, D) with [MASK] = NaN -> the masked ones: CRATE-MAE (Pai et al., arXiv 2404.02446).

    Published sizes, width x depth, heads: T 384 x 12, 6; S 576 x 12, 12; B 768 x 12, 12; L 1024 x 24, 16; the decoder
    mirrors the encoder. Masked patches are a learned vector in the encoder's input, as in SimMIM.

    Args:
        token_width: channels of a patch.
        grid: (h, w) of the patches, L = h w.
        width, heads: of all blocks.
        depth: blocks of the encoder, and of the decoder.
        step_size, sparsity: eta and lambda of the encoder's sparse coding; the code has 0.1 and 0.5.
        dropout: of attention.
        attention: `auto`, `sdpa` or `xformers`.
        target_width: numbers predicted per patch; 0 for those of a patch, -1 for the width of the features.
    """

    traits = NetworkTraits(
        objectives=("masked_regression", "projected_regression"),
        tokens=("continuous",),
        streams=("image",),
        conditions=(),
        predicts_points=True,
        has_attention_scores=True,
        has_features=True,
        has_fixed_grid=False,
    )
    positions: Tensor

    def __init__(
        self,
        token_width: int,
        grid: tuple[int, int],
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        step_size: float = 0.1,
        sparsity: float = 0.5,
        dropout: float = 0.0,
        attention: AttentionBackend = "auto",
        target_width: int = 0,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        sizes = CrateSizes(width, heads, step_size, sparsity, dropout, attention)
        self.base_grid, self.width = grid, width
        self.embedding = nn.Linear(token_width, width)
        self.class_token, self.mask_token = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.register_buffer("positions", class_and_grid(grid, grid, width), persistent=False)
        self.encoder = CrateStack([CrateEncoderBlock(sizes) for _ in range(depth)], width)
        self.decoder = CrateStack([CrateDecoderBlock(sizes) for _ in range(depth)], width)
        self.head = nn.Linear(width, predicted_width(target_width, width, token_width))
        self._init()

    @classmethod
    def check(cls, context: CheckContext) -> None:
        """Check that positions have an even number of pairs.

        Raises:
            ValueError: they do not.
        """
        try:
            require_sincos(context.model["width"])
        except ValueError as error:
            raise under("model", error) from None

    def _init(self) -> None:
        """The code's start: Xavier-uniform matrices, zero biases, small tokens; dictionaries by Kaiming's rule."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Work on another grid of the same image: positions are scaled to cover it."""
        self.positions = class_and_grid(self.base_grid, grid, self.width).to(self.positions.device)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - one signature for all denoisers
        cond: Condition | None = None,  # noqa: ARG002
        *,
        subset: TokenSubset | None = None,  # noqa: ARG002 - every patch is encoded
        where: Tensor | None = None,
        targets: TokenSubset | None = None,
    ) -> Point:
        """x_t (B, L, D), NaN in masked patches -> Point of the M masked ones, or of those at `where` (B, L), packed.

        Args:
            targets: `where` as positions.
        """
        is_masked = is_mask(x_t, 0)
        x = self.embedding(x_t.masked_fill(is_masked[..., None], 0))
        x = torch.where(is_masked[..., None], self.mask_token.to(x.dtype), x)
        hidden = self.decoder(self.encoder(self._placed(x)))[:, 1:]
        if where is not None:
            return Point(self.head(hidden[where]), where)
        chosen = TokenSubset.of(is_masked) if targets is None else targets
        return Point(self.head(chosen.select(hidden)), chosen.is_kept())

    def features(self, x_0: Tensor) -> Tensor:
        """Encoder output (B, L, D) of unmasked patches (B, L, token_width), without the class token."""
        encoded: Tensor = self.encoder(self._placed(self.embedding(x_0)))
        return encoded[:, 1:]

    def attention_scores(self, x_0: Tensor, cond: Condition | None = None) -> Tensor:  # noqa: ARG002
        """(B, L), attention from the class token to each unmasked patch in the encoder's last block."""
        x = self._placed(self.embedding(x_0))
        for block in self.encoder.blocks[:-1]:
            x = block(x)
        last = self.encoder.blocks[-1]
        assert isinstance(last, CrateEncoderBlock)
        return last.attention.weights(last.attention_norm(x))[:, 0, 1:]

    def _placed(self, x: Tensor) -> Tensor:
        """(B, 1 + L, D), with the class token in front and positions added."""
        return torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions

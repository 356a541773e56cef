"""DiffMAE: an encoder of clean visible patches, and a decoder that denoises the others."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskgen.core.predictions import Condition, Field
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.decoders import CrossSelf, DecoderSpec
from maskgen.models.mae import PatchEncoder
from maskgen.nn.embeddings import TimeEmbedding
from maskgen.nn.mixers.attention import AttentionBackend
from maskgen.nn.published_blocks import ViTSizes
from maskgen.processes import is_mask


@MODELS.register("diffmae")
class DiffMAE(PatchEncoder):
    """Clean visible patches and noised others (B, L, D) -> Field of x_0 (Wei et al., arXiv 2304.03283).

    A MAE whose masked patches are not one learned vector but the noised patch, embedded, and the time. Sampling
    completes an image: known patches are clean inputs of the encoder.

    Args:
        token_width: channels of a patch.
        grid: (h, w) of the patches, L = h w.
        width, depth, heads, mlp_ratio, dropout: of the encoder, sizes as MAE's.
        decoder: `cross_self`, `joint` or `cross`.
        attention: `auto`, `sdpa` or `xformers`.
    """

    traits = NetworkTraits(
        objectives=("masked_denoising",),
        tokens=("continuous",),
        streams=("image",),
        conditions=(),
        is_field=True,
        sees_known=True,
        subset_is_visible=True,
        has_attention_scores=True,
        has_features=True,
        has_fixed_grid=False,
    )

    def __init__(
        self,
        token_width: int,
        grid: tuple[int, int],
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        decoder: DecoderSpec = CrossSelf(),
        attention: AttentionBackend = "auto",
    ) -> None:
        super().__init__(token_width, grid, ViTSizes(width, depth, heads, mlp_ratio, dropout, attention), decoder)
        self.noised = nn.Linear(token_width, self.decoder.width)
        self.time = TimeEmbedding(self.decoder.width, scale=1.0)
        self._init()

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, *, subset: TokenSubset | None = None
    ) -> Field:
        """x_t (B, L, D) and t (B,) as the process scales them, clean patches in `cond.visible` -> Field of x_0.

        The field has all patches, visible ones unchanged; with `subset` the masked ones only.

        Args:
            subset: the visible patches, if their number is known; else they are counted.
        """
        clean = torch.full_like(x_t, torch.nan) if cond is None or cond.visible is None else cond.visible.to(x_t)
        is_masked = is_mask(clean, 0)
        visible = TokenSubset.of(~is_masked) if subset is None else subset
        clean = clean.masked_fill(is_masked[..., None], 0)
        queries = self.noised(x_t) + self.time(t)[:, None]
        masked = visible.rest()
        value = self.head(self.decoder(self._encode(self.embedding(clean), visible), visible, queries, masked))
        return Field(value, subset=masked) if subset is not None else Field(masked.scatter(value, clean.to(value)))

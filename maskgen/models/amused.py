"""aMUSEd: text to image by masked tokens, through the network of `diffusers`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import NetworkTraits
from maskgen.models.base import MODELS
from maskgen.models.tables import Tables
from maskgen.nn.checkpointing import Recomputable
from maskgen.nn.null_caption import NullCaption


@MODELS.register("amused")
class Amused(nn.Module):
    """Tokens (B, L) with [MASK] and captions -> Categorical over V tokens (aMUSEd, arXiv 2401.01808).

    A U-ViT with convolutions outside and transformer blocks inside: text states are attended to; the pooled text,
    image size, crop and aesthetic score modulate the blocks. It has no positions: convolutions tell tokens apart. A
    caption is the pooled vector, then the states (`captions: {states: projected}`).

    Published: 256 x 256 pixels with these defaults, 603,537,664 parameters; 512 x 512 with `is_halved: true`.

    Args:
        vocab_size: V; the input has one id more, [MASK] = V.
        grid: (h, w) of the tokens, L = h w.
        image_shape: (C, H, W) of the images, whose size is a condition.
        caption_width: C of captions.
        width, depth, heads, hidden: of the transformer; `hidden` is the width of its feed-forward layers.
        channels, channel_heads, n_residual: of the convolutional blocks, and how many there are on each side.
        is_halved: the transformer works on half the height and width.
        caption_length: states of a caption, without the pooled vector.
        table_rows: rows of the token table, 0 for V + 1; [MASK] is the last.
        crop: upper left corner of the crop that training images were; a condition.
        aesthetic: score of the images; a condition.
    """

    traits = NetworkTraits(
        objectives=("masked_tokens",), tokens=("discrete",), streams=("image",), conditions=("caption",)
    )
    micro: Tensor

    def __init__(
        self,
        vocab_size: int,
        grid: tuple[int, int],
        image_shape: tuple[int, int, int],
        caption_width: int = 768,
        width: int = 1024,
        depth: int = 22,
        heads: int = 16,
        hidden: int = 2816,
        channels: int = 768,
        channel_heads: int = 12,
        n_residual: int = 3,
        is_halved: bool = False,
        caption_length: int = 77,
        table_rows: int = 0,
        crop: tuple[int, int] = (0, 0),
        aesthetic: float = 6.0,
    ) -> None:
        super().__init__()
        if not caption_width:
            raise ValueError("amused generates from captions only; give the recipe `captions`")
        if table_rows and table_rows <= vocab_size:
            raise ValueError(f"table_rows must be above {vocab_size}, the number of codes, or 0, got {table_rows}")
        self.vocab_size, self.grid, self.mask_row = vocab_size, grid, (table_rows or vocab_size + 1) - 1
        sizes = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
        sizes |= {"intermediate_size": hidden, "in_channels": channels, "block_out_channels": channels}
        sizes |= {"block_num_heads": channel_heads, "num_res_blocks": n_residual, "codebook_size": vocab_size}
        sizes |= {"vocab_size": self.mask_row + 1, "sample_size": grid[0]}
        self.network = _network(is_halved, caption_width, sizes)
        self.null_caption = NullCaption(1 + caption_length, caption_width)
        size = (image_shape[2], image_shape[1])
        self.register_buffer("micro", torch.tensor([*size, *crop, aesthetic], dtype=torch.float32), persistent=False)

    def tables(self) -> Tables:
        """Rows of the token table and of the head."""
        rows: Tables = {"network.embed.embeddings.weight": ("token", "unused", "mask")}
        return {**rows, "network.mlm_layer.conv2.weight": ("token",)}

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,  # noqa: ARG002 - the masks determine the time
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L) int64 -> logits (B, L, V), or (M, V) at the positions `where` (B, L).

        Raises:
            ValueError: a subset of the tokens, which convolutions cannot do without.
        """
        if subset is not None:
            raise ValueError("amused drops no tokens; use train.keep_ratio 1")
        captions = self.null_caption(len(x_t), None if cond is None else cond.captions)
        ids = torch.where(x_t == self.vocab_size, self.mask_row, x_t).unflatten(1, self.grid)
        micro = self.micro.to(captions.dtype).expand(len(x_t), -1)
        logits: Tensor = self.network(ids, captions[:, 1:], captions[:, 0], micro).flatten(2).mT
        return Categorical(logits if where is None else logits[where], where)


def _network(is_halved: bool, caption_width: int, sizes: Mapping[str, int]) -> nn.Module:
    """The network of diffusers; its transformer blocks can be recomputed."""
    from diffusers import UVit2DModel  # seconds to import
    from diffusers.models.attention import BasicTransformerBlock

    Recomputable.register(BasicTransformerBlock)
    widths = {"cond_embed_dim": caption_width, "encoder_hidden_size": caption_width}
    network: nn.Module = UVit2DModel(**sizes, **widths, downsample=is_halved, upsample=is_halved)
    return network

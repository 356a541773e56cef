"""Pictures of half-decoded images."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.core.pixels import to_uint8
from maskgen.processes import is_mask
from maskgen.tokenizers import ImageTokenizer

MASK_GREY = 128


@torch.no_grad()
def decode_partial(tokenizer: ImageTokenizer, x_t: Tensor, *, is_field: bool = False) -> Tensor:
    """(B, C, H, W) uint8 on the CPU, [MASK] as a grey patch.

    Args:
        tokenizer: of the tokens.
        x_t: (B, L) int64 or (B, L, D) float after a step; of a Gaussian process the estimate of x_0.
        is_field: whether the tokens are those of a Gaussian process.
    """
    if is_field:
        return to_uint8(tokenizer.decode(x_t)).cpu()
    is_masked = is_mask(x_t, tokenizer.vocab_size)
    shown = x_t.nan_to_num(0) if x_t.is_floating_point() else x_t.masked_fill(is_masked, 0)
    images = to_uint8(tokenizer.decode(shown)).cpu()
    rows, columns = tokenizer.grid
    height, width = images.shape[-2] // rows, images.shape[-1] // columns
    patches = is_masked.view(-1, 1, rows, columns).cpu()
    patches = patches.repeat_interleave(height, 2).repeat_interleave(width, 3)
    return images.masked_fill(patches, MASK_GREY)

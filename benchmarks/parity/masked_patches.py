"""What the scripts of masked autoencoders share: pictures, masks and the loss of an objective on given targets."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import Input, Tensors
from torch import Tensor, nn

from maskgen.checkpoints.convert.vit import DEVIATION, MEAN
from maskgen.core.subset import TokenSubset
from maskgen.models.decoders import class_and_grid
from maskgen.tokenizers.image.patches import patchify

SIDE, PATCH, ROWS = 4, 16, 2
PICTURES = {"pictures": Input((ROWS, 3, SIDE * PATCH, SIDE * PATCH)), "order": Input((ROWS, SIDE**2))}
SIZES: dict[str, Any] = {
    "img_size": SIDE * PATCH, "patch_size": PATCH, "embed_dim": 384, "depth": 2, "num_heads": 6,
    "decoder_embed_dim": 128, "decoder_num_heads": 4, "norm_pix_loss": True,
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}  # fmt: skip
"""Of the public networks of MAE and CrossMAE, all but the decoder's depth."""
POSITIONS = {
    key: lambda shape: class_and_grid((SIDE, SIDE), (SIDE, SIDE), shape[-1])[None]
    for key in ("pos_embed", "decoder_pos_embed")
}
"""Their tensors that are formulas, see `Parity`."""


def our_tokens(pictures: Tensor) -> Tensor:
    """Pictures as the public code has them, normalised -> our patches, in [-1, 1] for pixels in [0, 1]."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    return patchify(2 * (pictures * deviation + mean) - 1, PATCH)


def visible_of(inputs: Tensors, n: int) -> TokenSubset:
    """The n patches of lowest number."""
    return TokenSubset(inputs["order"].argsort(1)[:, :n].sort(1).values, SIDE**2)


def pixels_first(patches: Tensor) -> Tensor:
    """(..., 3 p^2), channels first -> (..., 3 p^2), channels last, as the public code has them."""
    return patches.unflatten(-1, (3, -1)).transpose(-1, -2).flatten(-2)


def squared_error(values: Tensor, truth: Tensor) -> Tensor:
    """MAE's loss of normalised patches, both packed (M, D), channels first."""
    target = (truth - truth.mean(-1, keepdim=True)) / (truth.var(-1, keepdim=True) + 1e-6).sqrt()
    return (values - target).square().mean()


def masked(tokens: Tensor, visible: TokenSubset) -> Tensor:
    """Tokens with NaN where they are not visible."""
    return tokens.masked_fill(~visible.is_kept()[..., None], torch.nan)


def predict(network: Any, tokens: Tensor, visible: TokenSubset, targets: TokenSubset | None = None) -> Tensor:
    """(M, D), packed."""
    value: Tensor = network(masked(tokens, visible), torch.ones(len(tokens)), subset=visible, targets=targets).value
    return value

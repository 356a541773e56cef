"""CRATE-MAE: the official network and loss beside ours.

    python benchmarks/parity/crate.py --public DIR    # a copy of Ma-Lab-Berkeley/CRATE; needs timm and einops

Predictions of all patches under a given mask, features of the whole image, attention of the class token in the last
block, and the loss on normalised pixels. Public inputs are pixels less ImageNet's mean, over its deviation; ours are
the same pixels in [-1, 1].
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

from maskgen.checkpoints.convert.vit import DEVIATION, MEAN
from maskgen.core.subset import TokenSubset
from maskgen.nn.embeddings import sincos_2d
from maskgen.objectives.targets.pixels import normalised
from maskgen.tokenizers.image.patches import patchify

SIDE, PATCH, WIDTH = 4, 2, 384
KEPT = SIDE**2 // 4


def build(public: Path) -> nn.Module:
    code = imported(public, "model.crate_ae.crate_ae")
    network: nn.Module = code.MaskedAutoencoderViT(
        code.CRATEEncoderBlock,
        code.CRATEDecoderBlock,
        img_size=SIDE * PATCH,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=2,
        num_heads=6,
        decoder_embed_dim=WIDTH,
        decoder_depth=2,
        decoder_num_heads=6,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        norm_pix_loss=True,
    )
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    order = inputs["order"].argsort(dim=1, stable=True)
    network.random_masking = lambda x, _: _masked(x, order)
    loss, predicted, _ = network(inputs["images"])
    n, length, _ = predicted.shape
    channels_first = predicted.unflatten(2, (PATCH, PATCH, 3)).movedim(-1, 2).reshape(n, length, -1)
    hidden = network.prepare_tokens(inputs["images"])
    for block in network.blocks[:-1]:
        hidden = block(hidden)
    attention = network.blocks[-1](hidden, return_attention=True).mean(1)[:, 0, 1:]
    features = network.norm(network.blocks[-1](hidden))[:, 1:]
    return {"predicted": channels_first, "features": features, "attention": attention, "loss": loss}


def _masked(x: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first patches of an order kept, in the form of the public code."""
    kept = order[:, :KEPT]
    is_removed = torch.ones(order.shape).scatter(1, kept, 0.0)
    return x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])), is_removed, order.argsort(dim=1)


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("crate", state)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    x_0, seen = (patchify(2 * images - 1, PATCH) for images in (inputs["images"], inputs["images"] * deviation + mean))
    order = inputs["order"].argsort(dim=1, stable=True)
    is_removed = torch.ones(order.shape, dtype=torch.bool).scatter(1, order[:, :KEPT], False)
    x_t = seen.masked_fill(is_removed[..., None], torch.nan)
    every = TokenSubset.of(torch.ones_like(is_removed))
    t = torch.full((len(x_0),), 0.75)
    predicted = network(x_t, t, targets=every).value.unflatten(0, order.shape)
    loss = (predicted - normalised(x_0))[is_removed].square().mean()
    return {
        "predicted": predicted,
        "features": network.features(seen),
        "attention": network.attention_scores(seen),
        "loss": loss,
    }


def _positions(shape: Any) -> Tensor:
    return torch.cat([torch.zeros(1, shape[-1]), sincos_2d((SIDE, SIDE), shape[-1])])[None]


PARITY = Parity(
    "crate",
    {"images": Input((2, 3, SIDE * PATCH, SIDE * PATCH)), "order": Input((2, SIDE**2), below=1000)},
    build,
    theirs,
    ours,
    fixed={"pos_embed": _positions, "decoder_pos_embed": _positions},
    skipped=("decoder_embed.weight", "decoder_embed.bias"),
)

if __name__ == "__main__":
    run(PARITY, __doc__)

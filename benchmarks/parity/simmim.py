"""SimMIM: the official ViT with its relative positions and absolute error beside ours.

    python benchmarks/parity/simmim.py --public DIR    # a copy of microsoft/SimMIM

Pictures predicted from a masked one, and the loss; masks are units of 32 pixels. The official code imports timm's
`trunc_normal_` and a Swin transformer, which is not run.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Parity, Tensors, converted, imported, run
from masked_patches import PATCH, PICTURES, SIDE, our_tokens
from torch import Tensor, nn

from maskgen.checkpoints.convert.vit import DEVIATION, MEAN
from maskgen.core.predictions import Batch, Point
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.recipes.load import load_recipe
from maskgen.tokenizers.image.patches import patchify, unpatchify

MASKED = 2  # of 4 units


def build(public: Path) -> nn.Module:
    code = imported(public, "models.simmim")
    encoder = code.VisionTransformerForSimMIM(
        img_size=SIDE * PATCH, patch_size=PATCH, num_classes=0, embed_dim=384, depth=2, num_heads=6, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True, use_mean_pooling=False,
    )  # fmt: skip
    network: nn.Module = code.SimMIM(encoder, PATCH)
    return network


def is_masked(inputs: Tensors) -> Tensor:
    """(B, h, w) bool: two units of 2 x 2 tokens."""
    units = inputs["order"][:, :4].argsort(1).argsort(1).view(-1, 2, 2) < MASKED
    return units.repeat_interleave(2, 1).repeat_interleave(2, 2)


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    mask = is_masked(inputs).long()
    outputs = network.decoder(network.encoder(inputs["pictures"], mask))
    return {"outputs": outputs, "loss": network(inputs["pictures"], mask)}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network, tokens = converted("simmim", state), our_tokens(inputs["pictures"])
    where = is_masked(inputs).flatten(1)
    x_t = tokens.masked_fill(where[..., None], torch.nan)
    everything = TokenSubset.of(torch.ones_like(where))
    value = network(x_t, torch.ones(len(tokens)), subset=TokenSubset.of(~where), targets=everything).value
    pictures = unpatchify(value.unflatten(0, where.shape), (SIDE, SIDE), PATCH)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    normalised = ((pictures + 1) / 2 - mean) / deviation
    objective: Any = load_recipe("image/imagenet-simmim-b").build_objective()
    objective.process.corrupt = lambda x_0, t, noise: x_0.masked_fill(where[..., None], torch.nan)  # noqa: ARG005
    objective.process.n_masked = lambda length: None  # noqa: ARG005

    def on_their_pixels(x_t: Tensor, t: Tensor, cond: Any = None, **places: Any) -> Point:  # noqa: ARG001
        targets: TokenSubset = places["targets"]
        return Point(targets.pack(targets.gather(patchify(normalised, PATCH))), targets.is_kept())

    loss = objective(on_their_pixels, Batch(patchify(inputs["pictures"], PATCH)), Rng.stream(0)).value
    return {"outputs": normalised, "loss": loss}


PARITY = Parity("simmim", PICTURES, build, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)

"""U-ViT of discrete interpolants: the official network beside ours.

    python benchmarks/parity/interpolants.py --public DIR    # a copy of CompVis/discrete-interpolants

Logits with classes and without, guidance, and the official loss on masked tokens at equal masks. The official head has
a class [MASK], which ours has not: it is left out on both sides. Needs einops.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from decoded import loss_of_masks
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition

SIDE, CODES, CLASSES, SCALE = 8, 32, 7, 2.0
EXACT = {"mp_type": torch.float32, "cond_drop_prob": 0.0}


def build(public: Path) -> nn.Module:
    os.environ["TC_OPEN"] = "0"  # no torch.compile
    printing = ModuleType("utils_vq")  # the public one imports every tokenizer
    printing.print_rank_0 = lambda *_: None  # type: ignore[attr-defined]
    sys.modules["utils_vq"] = printing
    network: nn.Module = imported(public, "models.discrete_uvit").UViT(
        img_size=SIDE, vocab_size=CODES + 1, patch_size=2, in_channels=1, embed_dim=512, depth=3, num_heads=8,
        mlp_time_embed=False, num_classes=CLASSES,
    )  # fmt: skip
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    """Outputs of either public network."""
    from dynamics import dynamic_di  # of the public code

    x, labels, x_0 = inputs["tokens"], inputs["labels"], inputs["x_0"]
    t = torch.zeros(len(x))
    logits, null = (
        network(x.view(-1, SIDE, SIDE), t, y, **EXACT)[:, :CODES].flatten(2)
        for y in (labels, torch.full_like(labels, CLASSES))
    )
    masks = dynamic_di.Ucoupling(CODES)
    process = dynamic_di.DiscreteInterpolants(CODES + 1, masks, dynamic_di.LinearScheduler(), None, "bt", mask_ce=True)
    loss, _ = process.loss_fn(x, t, logits, x_0)
    guided = null + SCALE * (logits - null)
    return {"logits": logits.mT, "null": null.mT, "guided": guided.mT, "loss": loss}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    return converted_outputs("interpolants", "image/imagenet-uvit-interpolants", state, inputs)


def converted_outputs(layout: str, recipe: str, state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    """Outputs of our network of a layout, the loss by the objective of a shipped recipe."""
    network, x, labels = converted(layout, state), inputs["tokens"], inputs["labels"]
    t, cond = torch.zeros(len(x)), Condition(labels)
    given, null = (network(x, t, one) for one in (cond, Condition(torch.full_like(labels, NULL))))
    noise = torch.zeros(x.shape)
    loss = loss_of_masks(recipe, network, inputs["x_0"], x, noise, cond)
    guided = given.guide(null, SCALE).logits
    return {"logits": given.logits, "null": null.logits, "guided": guided, "loss": loss}


INPUTS = {
    "tokens": Input((2, SIDE * SIDE), below=CODES + 1),
    "x_0": Input((2, SIDE * SIDE), below=CODES),
    "labels": Input((2,), below=CLASSES),
}
PARITY = Parity("interpolants", INPUTS, build, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)

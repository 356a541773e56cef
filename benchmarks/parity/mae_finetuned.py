"""MAE's fine-tuned encoder: the official classifier beside ours.

    python benchmarks/parity/mae_finetuned.py --public DIR    # a copy of facebookresearch/mae

Pooled features and logits, with global pooling as published, and the cross-entropy of labels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from masked_patches import PATCH, ROWS, SIDE
from torch import Tensor, nn

from maskgen.checkpoints.convert.vit import DEVIATION, MEAN

CLASSES = 7


def build(public: Path) -> nn.Module:
    network: nn.Module = imported(public, "models_vit").VisionTransformer(
        img_size=SIDE * PATCH, patch_size=PATCH, embed_dim=384, depth=2, num_heads=6, qkv_bias=True,
        num_classes=CLASSES, global_pool=True, norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    features = network.forward_features(inputs["pictures"])
    return scored(features, network.head(features), inputs)


def classified(layout: str, state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    """Outputs of our converted classifier, whose pixels are in [0, 1]."""
    network = converted(layout, state)
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
    images = inputs["pictures"] * deviation + mean
    return scored(network.features(images), network(images), inputs)


def scored(features: Tensor, logits: Tensor, inputs: Tensors) -> dict[str, Tensor]:
    """What is compared."""
    loss = nn.functional.cross_entropy(logits, inputs["labels"])
    return {"features": features, "logits": logits, "loss": loss}


INPUTS = {"pictures": Input((ROWS, 3, SIDE * PATCH, SIDE * PATCH)), "labels": Input((ROWS,), below=CLASSES)}
PARITY = Parity("mae_finetuned", INPUTS, build, theirs, partial(classified, "mae-finetuned"))

if __name__ == "__main__":
    run(PARITY, __doc__)

"""SimMIM's fine-tuned ViT: the official classifier, with relative positions in each block, beside ours.

    python benchmarks/parity/simmim_finetuned.py --public DIR    # a copy of microsoft/SimMIM

Pooled features, logits, and the cross-entropy of labels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from harness import Parity, imported, run
from mae_finetuned import CLASSES, INPUTS, classified, theirs
from masked_patches import PATCH, SIDE
from torch import nn


def build(public: Path) -> nn.Module:
    network: nn.Module = imported(public, "models.vision_transformer").VisionTransformer(
        img_size=SIDE * PATCH, patch_size=PATCH, embed_dim=384, depth=2, num_heads=6, qkv_bias=True,
        num_classes=CLASSES, init_values=0.1, use_abs_pos_emb=False, use_rel_pos_bias=True, use_mean_pooling=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    return network


PARITY = Parity("simmim_finetuned", INPUTS, build, theirs, partial(classified, "simmim-finetuned"))

if __name__ == "__main__":
    run(PARITY, __doc__)

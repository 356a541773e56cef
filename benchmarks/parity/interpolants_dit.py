"""DiT of discrete interpolants: the official network beside ours.

    python benchmarks/parity/interpolants_dit.py --public DIR    # a copy of CompVis/discrete-interpolants

Logits with classes and without, guidance, and the official loss on masked tokens at equal masks. The official head has
a class [MASK], which ours has not: it is left out on both sides. Needs einops.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness import Parity, Tensors, imported, run
from interpolants import CLASSES, CODES, INPUTS, SIDE, converted_outputs, theirs
from torch import Tensor, nn

from maskgen.nn.embeddings import sincos_2d


def build(public: Path) -> nn.Module:
    os.environ["TC_OPEN"] = "0"  # no torch.compile
    network: nn.Module = imported(public, "models.discrete_dit").DiT(
        CODES + 1, SIDE, patch_size=2, embed_dim=512, depth=2, num_heads=8, num_classes=CLASSES, time_cond=False
    )
    return network


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    return converted_outputs("interpolants-dit", "image/imagenet-dit-interpolants", state, inputs)


PARITY = Parity(
    "interpolants_dit",
    INPUTS,
    build,
    theirs,
    ours,
    fixed={"pos_embed": lambda shape: sincos_2d((SIDE // 2, SIDE // 2), shape[-1])[None]},
)

if __name__ == "__main__":
    run(PARITY, __doc__)

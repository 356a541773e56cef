"""MaskGIL: the official network and sampler beside ours.

    python benchmarks/parity/maskgil.py --public DIR    # a copy of synbol/MaskGIL

Logits with classes and without, and guidance. The official head has a class [MASK], which ours has not: it is left out
on both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition

SIDE, CODES, CLASSES, SCALE = 16, 32, 7, 2.5


def build(public: Path) -> nn.Module:
    module = imported(public, "Network.gpt")
    sizes = module.ModelArgs(dim=768, n_layer=1, n_head=12, vocab_size=CODES, num_classes=CLASSES, block_size=SIDE**2)
    network: nn.Module = module.Transformer(sizes)
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x, labels = inputs["tokens"].view(-1, SIDE, SIDE), inputs["labels"]
    is_dropped = torch.zeros_like(labels, dtype=torch.bool)
    logits, null = (network(x, labels, dropped)[..., :CODES] for dropped in (is_dropped, ~is_dropped))
    return {"logits": logits, "null": null, "guided": null + SCALE * (logits - null)}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network, x = converted("maskgil", state), inputs["tokens"]
    t = torch.zeros(len(x))
    labels = inputs["labels"]
    given, null = (network(x, t, Condition(one)) for one in (labels, torch.full_like(labels, NULL)))
    return {"logits": given.logits, "null": null.logits, "guided": given.guide(null, SCALE).logits}


PARITY = Parity(
    "maskgil",
    {"tokens": Input((2, SIDE * SIDE), below=CODES + 1), "labels": Input((2,), below=CLASSES)},
    build,
    theirs,
    ours,
)

if __name__ == "__main__":
    run(PARITY, __doc__)

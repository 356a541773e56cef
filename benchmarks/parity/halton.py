"""Halton-MaskGIT: the official network and sampler beside ours.

    python benchmarks/parity/halton.py --public DIR    # a copy of valeoai/Halton-MaskGIT

Logits with classes and without, guidance, and the tokens of the official sampler in 8 steps with the mode of every
token (its `top_k=1`). The official head has a class [MASK], which ours has not: it is left out on both sides. Needs
einops.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from decoded import greedy
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition
from maskgen.samplers.masked.presets import halton

SIDE, CODES, CLASSES, SCALE, STEPS = 8, 32, 7, 1.7, 8


def build(public: Path) -> nn.Module:
    network: nn.Module = imported(public, "Network.transformer").Transformer(
        input_size=SIDE, hidden_dim=384, codebook_size=CODES, depth=2, heads=6, mlp_dim=4 * 384, nclass=CLASSES
    )
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    from Sampler.halton_sampler import HaltonSampler  # of the public code

    x, labels = inputs["tokens"].view(-1, SIDE, SIDE), inputs["labels"]
    is_dropped = torch.zeros_like(labels, dtype=torch.bool)
    logits, null = (network(x, labels, dropped)[..., :CODES] for dropped in (is_dropped, ~is_dropped))

    class Unmasked(nn.Module):
        def forward(self, *arguments: Tensor) -> Tensor:
            logits: Tensor = network(*arguments)
            return logits.index_fill(-1, torch.tensor([CODES]), -1e4)

    args = SimpleNamespace(mask_value=CODES, codebook_size=CODES, device="cpu")
    decoded: list[Tensor] = []
    decoder = SimpleNamespace(decode_code=lambda code: decoded.append(code.clone()) or torch.zeros(1))
    trainer = SimpleNamespace(vit=Unmasked(), args=args, input_size=SIDE, ae=decoder, autocast=nullcontext())
    HaltonSampler(w=SCALE - 1, step=STEPS, top_k=1)(trainer, nb_sample=len(x), labels=labels, verbose=False)
    network.eval()  # the sampler leaves it in training mode
    guided = SCALE * logits - (SCALE - 1) * null
    return {"logits": logits, "null": null, "guided": guided, "tokens": decoded[0].flatten(1)}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network, x, cond = converted("halton", state), inputs["tokens"], Condition(inputs["labels"])
    no_class = Condition(torch.full_like(cond.labels, NULL))
    t = torch.zeros(len(x))

    def guided(x_t: Tensor) -> Tensor:
        of_class, null = (network(x_t, t, one) for one in (cond, no_class))
        return of_class.guide(null, SCALE).logits

    start = torch.full_like(x, CODES)
    return {
        "logits": network(x, t, cond).logits,
        "null": network(x, t, no_class).logits,
        "guided": guided(x),
        "tokens": greedy(halton(STEPS), guided, start, (SIDE, SIDE)),
    }


PARITY = Parity(
    "halton",
    {"tokens": Input((2, SIDE * SIDE), below=CODES + 1), "labels": Input((2,), below=CLASSES)},
    build,
    theirs,
    ours,
    skipped=("head.weight",),  # the embedding itself
)

if __name__ == "__main__":
    run(PARITY, __doc__)

"""MaskDiT: the official network, preconditioning, guidance and loss beside ours.

    python benchmarks/parity/maskdit.py --public DIR    # a copy of Anima-Lab/MaskDiT

Outputs of all tokens, guidance, denoised outputs with tokens dropped, and the loss with equal noise: of kept tokens,
and of the reconstruction of dropped ones.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from noised import drawn, image_of, kept_first, latent_tokens, latents_of, loss_of
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition
from maskgen.nn.embeddings import sincos_2d
from maskgen.processes.preconditioned import Preconditioned
from maskgen.recipes.load import load_recipe

SIDE, CLASSES, KEPT, SCALE = 4, 7, 0.5, 1.5


def build(public: Path) -> nn.Module:
    code = imported(public, "models.maskdit")
    network: Any = code.DiT(
        input_size=2 * SIDE, hidden_size=384, depth=1, num_heads=6, num_classes=CLASSES, use_decoder=True,
        mae_loss_coef=0.1,
    )  # fmt: skip
    network.decoder_blocks = network.decoder_blocks[:1]  # always eight of them
    imported(public, "train_utils.loss")
    return network  # type: ignore[no-any-return]


class Net:
    """The network with its preconditioning, in the wrapper that the official loss expects."""

    def __init__(self, network: nn.Module) -> None:
        from models.maskdit import EDMPrecond  # of the public code
        from models.maskdit import nn as layers

        self.wrapped = EDMPrecond.__new__(EDMPrecond)
        layers.Module.__init__(self.wrapped)
        self.wrapped.model, self.wrapped.num_classes, self.wrapped.sigma_data = network, CLASSES, 0.5
        self.module = SimpleNamespace(model=network)
        self.training = True

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.wrapped(*arguments, **keywords)


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    from train_utils.loss import EDMLoss  # of the public code

    x, sigma = inputs["latents"], noise_level(inputs)
    labels = nn.functional.one_hot(inputs["labels"], CLASSES).float()
    net = Net(network)
    outputs = network(x, sigma.log() / 4, labels)["x"]
    guided = network.forward_with_cfg(x, (sigma.log() / 4).repeat(2), labels, SCALE)["x"]
    network.train()
    with drawn(rand=[inputs["order"]]):
        dropped = net(x, sigma, labels, mask_ratio=1 - KEPT)["x"]
    with drawn(
        randn=[inputs["level"].view(-1, 1, 1, 1)], randn_like=[inputs["noise"]], rand=[inputs["order"]]
    ):  # fmt: skip
        loss = EDMLoss()(net, x, labels, mask_ratio=1 - KEPT, mae_loss_coef=0.1).mean()
    return {"outputs": outputs, "guided": guided, "denoised": dropped, "loss": loss}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("maskdit", state)
    x, sigma, labels = latent_tokens(inputs["latents"]), noise_level(inputs), inputs["labels"]
    cond, subset = Condition(labels), kept_first(inputs["order"], KEPT)
    c_noise = sigma.log() / 4
    outputs = network(x, c_noise, cond)
    guided = outputs.guide(network(x, c_noise, Condition(torch.full_like(labels, NULL))), torch.full((2,), SCALE))
    recipe = "image/imagenet-maskdit-xl"
    process: Any = load_recipe(recipe).field_process()
    t = process.schedule.inverse(1 / (1 + sigma.double() ** 2))
    denoised = process.clean(Preconditioned(process, network)(x, t, cond, subset=subset).value, x, t)
    loss = loss_of(recipe, network, x, latent_tokens(inputs["noise"]), t, cond, subset)
    return {
        "outputs": image_of(outputs, SIDE), "guided": image_of(guided, SIDE),
        "denoised": latents_of(denoised.float(), SIDE), "loss": loss,
    }  # fmt: skip


def noise_level(inputs: Tensors) -> Tensor:
    """Sigma (B,)."""
    return (inputs["level"] * 1.2 - 1.2).exp()


LATENTS = (2, 4, 2 * SIDE, 2 * SIDE)
PARITY = Parity(
    "maskdit",
    {
        "latents": Input(LATENTS),
        "noise": Input(LATENTS),
        "level": Input((2,)),
        "order": Input((2, SIDE**2)),
        "labels": Input((2,), below=CLASSES),
    },
    build,
    theirs,
    ours,
    fixed={name: lambda shape: sincos_2d((SIDE, SIDE), shape[-1])[None] for name in ("pos_embed", "decoder_pos_embed")},
)

if __name__ == "__main__":
    run(PARITY, __doc__)

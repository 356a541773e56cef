"""MicroDiT: the official network at 256 and 512 pixels, guidance and loss beside ours.

    python benchmarks/parity/microdit.py --public DIR    # a copy of SonyResearch/micro_diffusion

Outputs, outputs with the positions of 512 pixels, guidance with the empty caption, and the loss of kept patches with
equal noise. The official code imports composer, open_clip, einops and easydict, none of which these parts use: empty
modules stand in for them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from noised import drawn, image_of, kept_first, latent_tokens, loss_of
from torch import Tensor, nn

from maskgen.core.predictions import Condition
from maskgen.nn.embeddings import sincos_2d

SIDE, WIDTH, CAPTIONS, KEPT, SCALE = 4, 512, 48, 0.5, 5.0


def build(public: Path) -> nn.Module:
    stand_in("open_clip")
    stand_in("einops", rearrange=None)
    stand_in("easydict", EasyDict=lambda values: SimpleNamespace(**values))
    stand_in("composer")
    stand_in("composer.models", ComposerModel=nn.Module)
    folder = public / "micro_diffusion" / "models"
    stand_in("micro_diffusion", __path__=[str(folder.parent)])
    stand_in("micro_diffusion.models", __path__=[str(folder)])
    imported(public, "micro_diffusion.models.model")
    return network_of(1.0)


def stand_in(name: str, **values: Any) -> None:
    """An empty module."""
    module = ModuleType(name)
    module.__dict__.update(values)
    sys.modules[name] = module


def network_of(scale: float) -> nn.Module:
    """The public network, with experts in the second block of the mixer."""
    from micro_diffusion.models.dit import DiT  # of the public code

    network: nn.Module = DiT(
        input_size=2 * SIDE, dim=WIDTH, depth=2, head_dim=32, caption_channels=CAPTIONS, pos_interp_scale=scale,
        qkv_multipliers=[0.5, 1.0], ffn_multipliers=[0.5, 4.0], patch_mixer_depth=2, patch_mixer_dim=128,
        patch_mixer_mlp_ratio=4.0, use_bias=False, num_experts=4, expert_capacity=2.0,
    )  # fmt: skip
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    from micro_diffusion.models.model import LatentDiffusion  # of the public code

    x, captions = inputs["latents"], inputs["captions"][:, None]
    level = inputs["level"]
    wide = network_of(2.0)
    wide.load_state_dict({**network.state_dict(), "pos_embed": wide.pos_embed})
    # Another `self` than the whole pipeline, which has an autoencoder and a text encoder.
    loop: Any = SimpleNamespace(
        edm_config=SimpleNamespace(P_mean=-0.6, P_std=1.2, sigma_data=0.9), randn_like=torch.randn_like, dit=network
    )
    loop.model_forward_wrapper = lambda *args, **keys: LatentDiffusion.model_forward_wrapper(loop, *args, **keys)
    outputs, guided = (network(x, level, captions, cfg=scale)["sample"] for scale in (1.0, SCALE))
    network.train()
    with drawn(randn=[level.view(-1, 1, 1, 1)], rand=[inputs["order"]]):
        loop.randn_like = lambda _: inputs["noise"]
        loss = LatentDiffusion.edm_loss(loop, x, captions, 1 - KEPT)
    return {"outputs": outputs, "outputs_512": wide(x, level, captions)["sample"], "guided": guided, "loss": loss}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network, wide = converted("microdit", state), converted("microdit", state)
    wide.positions = sincos_2d((SIDE, SIDE), WIDTH, (0.5, 0.5))  # what `position_spacing` 0.5 says
    x, level = latent_tokens(inputs["latents"]), inputs["level"]
    cond = Condition(torch.zeros(len(x), dtype=torch.long), inputs["captions"])
    outputs = network(x, level, cond)
    guided = outputs.guide(network(x, level, cond.null()), torch.full((len(x),), SCALE))
    sigma = (level.double() * 1.2 - 0.6).exp()
    t = log_normal().inverse(1 / (1 + sigma**2))
    subset = kept_first(inputs["order"], KEPT)
    loss = loss_of("image/micro-dit-xl", network, x, latent_tokens(inputs["noise"]), t, cond, subset)
    return {
        "outputs": image_of(outputs, SIDE), "outputs_512": image_of(wide(x, level, cond), SIDE),
        "guided": image_of(guided, SIDE), "loss": loss,
    }  # fmt: skip


def log_normal() -> Any:
    """The recipe's law of noise levels."""
    from maskgen.recipes.load import load_recipe

    process: Any = load_recipe("image/micro-dit-xl").field_process()
    return process.schedule


LATENTS = (2, 4, 2 * SIDE, 2 * SIDE)
PARITY = Parity(
    "microdit",
    {
        "latents": Input(LATENTS),
        "noise": Input(LATENTS),
        "level": Input((2,)),
        "order": Input((2, SIDE**2)),
        "captions": Input((2, 5, CAPTIONS)),
    },
    build,
    theirs,
    ours,
    fixed={"pos_embed": lambda shape: sincos_2d((SIDE, SIDE), shape[-1])[None]},
    skipped=("mask_token",),  # zeros that fill a layout
)

if __name__ == "__main__":
    run(PARITY, __doc__)

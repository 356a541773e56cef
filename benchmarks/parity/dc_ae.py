"""DC-AE in its original names: the network of efficientvit beside the folder of diffusers that ours is.

    python benchmarks/parity/dc_ae.py --public DIR    # a copy of mit-han-lab/efficientvit; needs omegaconf

Latents of images and images of latents, of a small network with the kinds of blocks and norms of dc-ae-f32c32-in-1.0.
The public RMSNorm is a Triton kernel for a GPU; its formula stands in for it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from harness import Input, Parity, Tensors, imported, run
from torch import Tensor, nn

from maskgen.checkpoints.convert.conversion import run as convert
from maskgen.tokenizers.image.latent import DCTokenizer
from maskgen.tokenizers.image.patches import patchify, unpatchify

SIDE, CHANNELS, STAGES = 64, 8, 6
WIDTHS = (32, 32, 32, 32, 64, 64)
KINDS = ["ResBlock"] * 3 + ["EViT_GLU"] * 3
GRID = SIDE // 2 ** (STAGES - 1)


def rms(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """RMSNorm over channels of (B, C, H, W), with a bias."""
    normed = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
    return normed * weight[:, None, None] + bias[:, None, None]


def build(public: Path) -> nn.Module:
    kernel = ModuleType("efficientvit.models.nn.triton_rms_norm")
    kernel.TritonRMSNorm2dFunc = mock.Mock(apply=rms)  # type: ignore[attr-defined]
    for name in ("efficientvit.models.nn", "efficientvit.models.efficientvit"):  # which import what training needs
        bare = ModuleType(name)
        bare.__path__ = [str(public / Path(*name.split(".")))]
        sys.modules[name] = bare
    sys.modules[kernel.__name__] = kernel
    code = imported(public, "efficientvit.models.efficientvit.dc_ae")
    encoder = code.EncoderConfig(
        in_channels=3, latent_channels=CHANNELS, width_list=WIDTHS, depth_list=(0, 1, 2, 1, 1, 1), block_type=KINDS
    )
    decoder = code.DecoderConfig(
        in_channels=3, latent_channels=CHANNELS, width_list=WIDTHS, depth_list=(0, 2, 1, 1, 1, 1), block_type=KINDS,
        norm=["bn2d"] * 3 + ["trms2d"] * 3, act=["relu"] * 3 + ["silu"] * 3,
    )  # fmt: skip
    network: nn.Module = code.DCAE(code.DCAEConfig(latent_channels=CHANNELS, encoder=encoder, decoder=decoder))
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    return {"latents": network.encode(inputs["images"]), "images": network.decode(inputs["latents"])}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    steps = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(1)
        for name in state
        if name.endswith("running_mean")
    }
    with TemporaryDirectory() as folder:
        torch.save({"state_dict": state | steps}, f"{folder}/dc-ae-f32c8-in-1.0.pt")
        convert(f"{folder}/dc-ae-f32c8-in-1.0.pt", f"{folder}/dc")
        tokenizer = DCTokenizer((3, SIDE, SIDE), f"{folder}/dc")
    latents = unpatchify(tokenizer.encode((inputs["images"] + 1) / 2), (GRID, GRID), 1) / tokenizer.scale
    decoded = tokenizer.net.decode(unpatchify(patchify(inputs["latents"], 1), (GRID, GRID), 1)).sample
    return {"latents": latents, "images": decoded}


PARITY = Parity(
    "dc_ae",
    {"images": Input((2, 3, SIDE, SIDE)), "latents": Input((2, CHANNELS, GRID, GRID))},
    build,
    theirs,
    ours,
    fixed={
        f"decoder.stages.{stage}.op_list.{place}.main.conv2.norm.running_var": torch.ones
        for stage, place in ((1, 1), (1, 2), (2, 1))
    },
)

if __name__ == "__main__":
    run(PARITY, __doc__)

"""MDLM's public network with time conditioning beside ours: denoising law at its own noise levels, and the ELBO's sum.

    python benchmarks/parity/mdlm.py --public DIR

DIR is the folder `models` of kuleshov-group/mdlm; needs einops and omegaconf. flash_attn, which has no CPU kernels, is
replaced by PyTorch's attention and a rotation of queries and keys in halves. Without time conditioning
(`kuleshov-group/mdlm-owt`) the network is given noise 0: output `untimed`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from sedd import without_flash_attention
from torch import Tensor, nn

V, L = 30, 12
SIZES = {"hidden_size": 32, "n_heads": 4, "cond_dim": 16, "n_blocks": 2, "dropout": 0.0, "scale_by_sigma": True}
CONFIG: dict[str, object] = {"model_type": "mdlm", "model_length": L, "n_heads": 4}


def rotated(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries and keys of (B, L, 3, H, d) turned in halves by angles with cosines and sines (L, d / 2)."""
    half = cos.shape[-1]
    a, b = qkv[..., :half], qkv[..., half:]
    cos, sin = cos[:, None, None], sin[:, None, None]
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    return torch.cat([turned[:, :, :2], qkv[:, :, 2:]], 2)


def build(public: Path) -> nn.Module:
    import omegaconf

    without_flash_attention()
    layers, rotary = ModuleType("flash_attn.layers"), ModuleType("flash_attn.layers.rotary")
    vars(rotary)["apply_rotary_emb_qkv_"] = rotated
    package = sys.modules["flash_attn"]
    vars(package)["layers"], vars(layers)["rotary"] = layers, rotary
    vars(package)["flash_attn_interface"] = sys.modules["flash_attn.flash_attn_interface"]
    sys.modules |= {"flash_attn.layers": layers, "flash_attn.layers.rotary": rotary}
    wrapper = nn.Module()
    wrapper.backbone = imported(public, "dit").DIT(omegaconf.OmegaConf.create({"model": SIZES}), V + 1)
    return wrapper


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x_t, t = given(inputs)
    is_masked = x_t == V
    timed = network.backbone(x_t, -torch.log1p(-(1 - 1e-3) * t))[..., :V]
    untimed = network.backbone(x_t, torch.zeros_like(t))[..., :V]
    losses = -timed.log_softmax(-1).gather(-1, inputs["x_0"][..., None])[..., 0]
    return {"timed": timed, "untimed": untimed, "elbo": (losses * is_masked / t[:, None]).sum(1)}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    x_t, t = given(inputs)
    network = converted("mdlm", state, **CONFIG, time_conditioning=True)
    timed, untimed = network(x_t, t), converted("mdlm", state, **CONFIG)(x_t, t)
    losses = -timed.log_prob(inputs["x_0"])
    return {
        "timed": timed.logits, "untimed": untimed.logits, "elbo": (losses * (x_t == V) / t[:, None]).sum(1),
    }  # fmt: skip


def given(inputs: Tensors) -> tuple[Tensor, Tensor]:
    """x_t and t."""
    return torch.where(inputs["mask"] > 0, V, inputs["x_0"]), (inputs["level"] + 1) / 100


INPUTS = {"x_0": Input((2, L), below=V), "mask": Input((2, L), below=2), "level": Input((2,), below=97)}
PARITY = Parity("mdlm", INPUTS, build, theirs, ours, skipped=("inv_freq",))

if __name__ == "__main__":
    run(PARITY, __doc__)

"""SEDD's public network beside ours: log scores, their denoising law, and the score entropy as a cross-entropy.

    python benchmarks/parity/sedd.py --public DIR

DIR is a copy of louaaron/Score-Entropy-Discrete-Diffusion; needs einops and omegaconf. flash_attn, which has no CPU
kernels, is replaced by PyTorch's attention.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

V, L = 30, 12
CONFIG: dict[str, object] = {
    "tokens": V, "graph": {"type": "absorb"},
    "model": {
        "hidden_size": 32, "n_heads": 4, "cond_dim": 16, "n_blocks": 2, "dropout": 0.0, "scale_by_sigma": True,
    },
}  # fmt: skip


def attention(qkv: Tensor, _: Tensor, length: int, *__: object, **___: object) -> Tensor:
    """Rows of `length` tokens one after the other, (B L, 3, H, d) -> (B L, H, d)."""
    q, k, v = (part.unflatten(0, (-1, length)).transpose(1, 2) for part in qkv.unbind(1))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)


def without_flash_attention() -> None:
    """Put PyTorch's attention in the place of the package."""
    package, interface = ModuleType("flash_attn"), ModuleType("flash_attn.flash_attn_interface")
    vars(interface)["flash_attn_varlen_qkvpacked_func"] = attention
    sys.modules |= {"flash_attn": package, "flash_attn.flash_attn_interface": interface}


def build(public: Path) -> nn.Module:
    without_flash_attention()
    network: nn.Module = imported(public, "model").SEDD(CONFIG)
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x_t, t = torch.where(inputs["mask"] > 0, V, inputs["x_0"]), (inputs["level"] + 1) / 100
    sigma = -torch.log1p(-(1 - 1e-3) * t)
    scores = network(x_t, sigma)[..., :V]  # log p(x) / p(x_t), up to normalisation
    is_masked = x_t == V
    log_probs = scores[is_masked].log_softmax(-1)
    return {"law": log_probs, "cross_entropy": -log_probs.gather(-1, inputs["x_0"][is_masked][:, None])}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("sedd", state, **CONFIG)
    x_t = torch.where(inputs["mask"] > 0, V, inputs["x_0"])
    is_masked = x_t == V
    law = network(x_t, (inputs["level"] + 1) / 100, where=is_masked).logits.log_softmax(-1)
    return {"law": law, "cross_entropy": -law.gather(-1, inputs["x_0"][is_masked][:, None])}


INPUTS = {"x_0": Input((2, L), below=V), "mask": Input((2, L), below=2), "level": Input((2,), below=97)}
PARITY = Parity("sedd", INPUTS, build, theirs, ours, skipped=("inv_freq",))

if __name__ == "__main__":
    run(PARITY, __doc__)

"""BD3-LM's public network (Hugging Face's format) beside ours: training pass over [x_t; x_0], and sampling pass.

python benchmarks/parity/bd3.py --public DIR    # the folder `models` of kuleshov-group/bd3lms; needs einops
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

V, L, BLOCK = 30, 12, 4
CONFIG: dict[str, object] = {
    "model_type": "bd3lm", "block_size": BLOCK, "vocab_size": V + 1, "model_length": L, "cross_attn": True,
    "adaln": True, "attn_backend": "sdpa", "causal": False, "hidden_dim": 32, "cond_dim": 16, "n_blocks": 2,
    "n_heads": 4, "dropout": 0.0, "time_conditioning": False, "var_min": True,
}  # fmt: skip


def build(public: Path) -> nn.Module:
    config = imported(public, "hf.configuration_bd3lm").BD3LMConfig(**CONFIG)
    network: nn.Module = imported(public, "hf.modeling_bd3lm").BD3LM(config)
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x_0, t = inputs["x_0"], torch.zeros(len(inputs["x_0"]))
    x_t = torch.where(inputs["mask"] > 0, V, x_0)
    both, _ = network.backbone(torch.cat([x_t, x_0], 1), sigma=t)
    sampling, _ = network.backbone(x_t, sigma=t, sample_mode=True)
    return {"training": both[..., :V], "sampling": sampling[..., :V]}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("bd3", state, **CONFIG)
    x_0, t = inputs["x_0"], torch.zeros(len(inputs["x_0"]))
    x_t = torch.where(inputs["mask"] > 0, V, x_0)
    return {"training": network(x_t, t, clean=x_0).logits, "sampling": network(x_t, t).logits}


INPUTS = {"x_0": Input((2, L), below=V), "mask": Input((2, L), below=2)}
PARITY = Parity("bd3", INPUTS, build, theirs, ours, skipped=("inv_freq", "sampling_eps_min", "sampling_eps_max"))

if __name__ == "__main__":
    run(PARITY, __doc__)

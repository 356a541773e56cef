"""Dream's public network beside ours, with equal random weights; logits shifted by one as its sampler does.

    python benchmarks/parity/dream.py --public DIR

DIR is the folder `dream` of NVlabs/Fast-dLLM, which holds Dream's network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

V, L, MASK, BASE = 40, 12, 37, 1e6
CONFIG: dict[str, object] = {
    "model_type": "Dream", "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "mask_token_id": MASK,
    "pad_token_id": 36, "rope_theta": BASE, "rms_norm_eps": 1e-6,
}  # fmt: skip
OTHERS = [token for token in range(V) if token != MASK]


def build(public: Path) -> nn.Module:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def plain(*_: object, **__: object) -> tuple[Tensor, float]:  # transformers 5 has no entry of this name
        return BASE ** (-torch.arange(0, 8, 2) / 8), 1.0

    ROPE_INIT_FUNCTIONS.setdefault("default", plain)
    config = imported(public, "model.configuration_dream").DreamConfig(**CONFIG)
    network: nn.Module = imported(public, "model.modeling_dream").DreamModel(config)
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x_0, is_masked = inputs["x_0"], inputs["mask"] > 0
    logits = network(torch.where(is_masked, MASK, x_0)).logits
    logits = torch.cat([logits[:, :1], logits[:, :-1]], 1)
    logits[..., MASK] = -torch.inf  # ours never predicts [MASK]
    return {"outputs": logits[..., OTHERS], "loss": F.cross_entropy(logits[is_masked], x_0[is_masked])}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("dream", {name.removeprefix("model."): value for name, value in state.items()}, **CONFIG)
    x_0, is_masked = inputs["x_0"], inputs["mask"] > 0
    prediction = network(torch.where(is_masked, V, x_0), torch.zeros(len(x_0)))
    return {"outputs": prediction.logits[..., OTHERS], "loss": -prediction.log_prob(x_0)[is_masked].mean()}


INPUTS = {"x_0": Input((2, L), below=MASK), "mask": Input((2, L), below=2)}
PARITY = Parity("dream", INPUTS, build, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)

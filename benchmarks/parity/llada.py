"""LLaDA's public network beside ours, with equal random weights; the denoising loss with equal masks.

    python benchmarks/parity/llada.py --public DIR

DIR is the folder `llada` of NVlabs/Fast-dLLM, which holds LLaDA's network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

V, L, MASK = 40, 12, 37
OTHERS = [token for token in range(V) if token != MASK]
CONFIG: dict[str, object] = {
    "model_type": "llada", "d_model": 32, "n_heads": 4, "n_kv_heads": 4, "n_layers": 2, "mlp_hidden_size": 48,
    "vocab_size": V, "embedding_size": V, "mask_token_id": MASK, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5,
    "max_sequence_length": 64, "rope": True, "alibi": False, "layer_norm_type": "rms", "activation_type": "silu",
    "block_type": "llama", "weight_tying": False,
}  # fmt: skip
PRIVATE: dict[str, object] = {
    "include_bias": False, "include_qkv_bias": False, "bias_for_layer_norm": False, "attention_layer_norm": False,
    "init_device": "cpu", "flash_attention": False, "rope_full_precision": True, "attention_dropout": 0.0,
    "residual_dropout": 0.0, "embedding_dropout": 0.0, "input_emb_norm": False, "scale_logits": False,
    "layer_norm_with_affine": True, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


def build(public: Path) -> nn.Module:
    config = imported(public, "model.configuration_llada").LLaDAConfig(**CONFIG, **PRIVATE)
    config.use_cache = False  # transformers 5 drops this key
    network: nn.Module = imported(public, "model.modeling_llada").LLaDAModelLM(config)
    return network


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x_0, is_masked = inputs["x_0"], inputs["mask"] > 0
    logits = network(torch.where(is_masked, MASK, x_0)).logits
    logits[..., MASK] = -torch.inf  # ours never predicts [MASK]; the public loss leaves it in the softmax
    loss = F.cross_entropy(logits[is_masked], x_0[is_masked])
    return {"outputs": logits[..., OTHERS], "loss": loss}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("llada", {name.removeprefix("model."): value for name, value in state.items()}, **CONFIG)
    x_0, is_masked = inputs["x_0"], inputs["mask"] > 0
    prediction = network(torch.where(is_masked, V, x_0), torch.zeros(len(x_0)))
    loss = -prediction.log_prob(x_0)[is_masked].mean()
    return {"outputs": prediction.logits[..., OTHERS], "loss": loss}


INPUTS = {"x_0": Input((2, L), below=MASK), "mask": Input((2, L), below=2)}
PARITY = Parity("llada", INPUTS, build, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)

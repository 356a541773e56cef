"""LLaDA2's public blocks (dense and experts) beside ours: training pass over [x_t; x_0], and sampling pass.

    python benchmarks/parity/llada2.py --public DIR    # a copy of inclusionAI/dFactory

The classes of the blocks are taken from the public file, which as a whole needs VeOmni and transformers 4; embedding,
rotary angles of half of the channels and attention masks of blocks are made here as its model makes them.
"""

from __future__ import annotations

import ast
import math
import typing
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from harness import Input, Parity, Tensors, converted, run
from torch import Tensor, nn
from transformers.activations import ACT2FN

from maskgen.checkpoints.convert import llada2
from maskgen.nn.patterns import BlockCausal, NoisyClean

V, L, BLOCK, MASK = 40, 12, 4, 37
OTHERS = [token for token in range(V) if token != MASK]
CONFIG: dict[str, object] = {
    "model_type": "llada2_moe", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_hidden_layers": 2, "intermediate_size": 48, "moe_intermediate_size": 12, "num_experts": 8,
    "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "num_shared_experts": 1, "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 600_000.0,
    "partial_rotary_factor": 0.5, "max_position_embeddings": 64, "use_qkv_bias": False, "use_bias": False,
    "vocab_size": V, "mask_token_id": MASK, "norm_topk_prob": True, "score_function": "sigmoid",
}  # fmt: skip
PARTS = ("RMSNorm", "MLP", "Gate", "SparseMoeBlock", "Attention", "DecoderLayer")


def classes(public: Path) -> dict[str, Any]:
    """The public classes of a block, by name."""
    tree = ast.parse((public / "models" / "llada2_moe" / "modeling_llada2_moe.py").read_text())
    wanted = {f"LLaDA2Moe{part}" for part in PARTS} | {"rotate_half", "apply_rotary_pos_emb", "repeat_kv"}
    nodes: list[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name in wanted
    ]
    space: dict[str, Any] = {
        "torch": torch, "nn": nn, "F": F, "math": math, "warnings": warnings, "ACT2FN": ACT2FN, "Cache": object,
        **vars(typing), "LLaDA2MoeConfig": object, "is_liger_kernel_available": lambda: False,
    }  # fmt: skip
    exec(compile(ast.Module(nodes, []), "llada2", "exec"), space)
    space["ATTENTION_CLASSES"] = {"eager": space["LLaDA2MoeAttention"]}
    return space


class Public(nn.Module):
    """The public network of its own blocks."""

    def __init__(self, public: Path) -> None:
        super().__init__()
        code, width = classes(public), 32
        config = SimpleNamespace(_attn_implementation="eager", attention_dropout=0.0, **CONFIG)
        self.word_embeddings = nn.Embedding(V, width)
        self.layers = nn.ModuleList(code["LLaDA2MoeDecoderLayer"](config, layer) for layer in range(2))
        self.norm = code["LLaDA2MoeRMSNorm"](width, 1e-6)
        self.lm_head = nn.Linear(width, V, bias=False)

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Logits (B, L, V); mask (L, L) bool, positions (L,)."""
        angles = positions[:, None] * 600_000.0 ** (-torch.arange(0, 4, 2) / 4)
        turns = torch.cat([angles, angles], -1)[None]
        added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).expand(len(ids), 1, -1, -1)
        x = self.word_embeddings(ids)
        for layer in self.layers:
            x = layer(x, attention_mask=added, position_embeddings=(turns.cos(), turns.sin()))[0]
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def masked_tokens(inputs: Tensors, mask_id: int) -> Tensor:
    """x_t (B, L)."""
    return torch.where(inputs["mask"] > 0, mask_id, inputs["x_0"])


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x_0, x_t, places = inputs["x_0"], masked_tokens(inputs, MASK), torch.arange(L)
    both, causal = NoisyClean(L, BLOCK).mask(2 * L, x_0.device), BlockCausal(BLOCK).mask(L, x_0.device)
    training = network(torch.cat([x_t, x_0], 1), both, places.repeat(2))[:, :L]
    return {"training": training[..., OTHERS], "sampling": network(x_t, causal, places)[..., OTHERS]}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = converted("llada2", state, **CONFIG)
    assert network.block_length == llada2.BLOCK_LENGTH
    network.block_length = BLOCK
    x_0, x_t, t = inputs["x_0"], masked_tokens(inputs, V), torch.zeros(len(inputs["x_0"]))
    training, sampling = network(x_t, t, clean=x_0).logits, network(x_t, t).logits
    return {"training": training[..., OTHERS], "sampling": sampling[..., OTHERS]}


INPUTS = {"x_0": Input((8, L), below=MASK), "mask": Input((8, L), below=2)}
PARITY = Parity("llada2", INPUTS, Public, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)

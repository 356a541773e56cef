"""MaskGIT: the official flax network and decoding beside ours.

    python benchmarks/parity/maskgit_jax.py --public DIR    # a copy of google-research/maskgit

Logits, and the tokens of the official decoding in 1 to 16 steps with the mode of every token and without noise. Needs
jax and flax.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from decoded import greedy
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

from maskgen.core.predictions import Condition
from maskgen.samplers.masked.presets import maskgit

SIDE, CODES, CLASSES = 4, 32, 1000
STEPS = (1, 2, 8, 12, 16)
ROWS = CODES + CLASSES + 1


class Flax(nn.Module):
    """The public network with its weights as parameters, named by their path."""

    def __init__(self, module: Any, length: int) -> None:
        super().__init__()
        import flax
        import jax

        self.module = module
        variables = module.init(jax.random.PRNGKey(0), np.zeros((1, length), np.int32), deterministic=True)
        for path, value in flax.traverse_util.flatten_dict(variables["params"], sep="/").items():
            self.register_parameter(path, nn.Parameter(torch.tensor(np.array(value))))

    def forward(self, ids: Any) -> Any:
        """Logits of ids (B, L), both of jax."""
        import flax

        flat = {tuple(path.split("/")): value.detach().numpy() for path, value in self.named_parameters()}
        params = {"params": flax.traverse_util.unflatten_dict(flat)}
        return self.module.apply(params, ids, deterministic=True)


def build(public: Path) -> nn.Module:
    network = imported(public, "maskgit.nets.maskgit_transformer").Transformer(
        vocab_size=ROWS, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, max_position_embeddings=SIDE**2 + 1,
    )  # fmt: skip
    return Flax(network, SIDE**2 + 1)


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    import jax
    import jax.numpy as jnp

    jnp.DeviceArray = jax.Array  # its name in the public code's time
    from maskgit.libml import parallel_decode  # of the public code

    jax.random.categorical = lambda _, logits: logits.argmax(-1)
    labels = inputs["labels"].numpy() + CODES

    def logits_of(ids: Any) -> Any:
        """As in the public inference program: the class stands in front, [MASK] is -1."""
        return network(jnp.concatenate([labels[:, None], ids], 1))[:, 1:, :CODES]

    x = inputs["tokens"].numpy()
    start = jnp.full(x.shape, -1)
    tokens = [parallel_decode.decode(start, jax.random.PRNGKey(0), logits_of, -1, n, 0, 0.0)[:, -1] for n in STEPS]
    logits = logits_of(jnp.where(x == CODES, -1, x))
    return {"logits": _tensor(logits), "tokens": torch.stack([_tensor(one) for one in tokens])}


def _tensor(value: Any) -> Tensor:
    return torch.tensor(np.array(value))


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network, x, cond = converted("maskgit", state), inputs["tokens"], Condition(inputs["labels"])
    t, start = torch.zeros(len(x)), torch.full_like(x, CODES)
    tokens = [
        greedy(maskgit(n, choice_temperature=0.0), lambda x_t: network(x_t, t, cond).logits, start, (SIDE, SIDE))
        for n in STEPS
    ]
    return {"logits": network(x, t, cond).logits, "tokens": torch.stack(tokens)}


PARITY = Parity(
    "maskgit_jax",
    {"tokens": Input((2, SIDE * SIDE), below=CODES + 1), "labels": Input((2,), below=CLASSES)},
    build,
    theirs,
    ours,
)

if __name__ == "__main__":
    run(PARITY, __doc__)

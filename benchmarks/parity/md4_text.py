"""MD4's public text network (flax) beside ours: logits at times in [0, 1], and the sum of the ELBO.

python benchmarks/parity/md4_text.py --public DIR    # a copy of google-deepmind/md4; needs jax and flax
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from harness import Input, Parity, Tensors, converted, imported, run
from torch import Tensor, nn

V, L = 30, 12
SIZES: dict[str, Any] = {
    "n_layers": 2, "feature_dim": 8, "num_heads": 4, "vocab_size": V, "mlp_type": "glu", "depth_scaled_init": True,
    "cond_type": "adaln_zero", "outside_embed": True,
}  # fmt: skip


class Flax(nn.Module):
    """A flax network with its parameters as those of a module, names with slashes."""

    def __init__(self, network: Any) -> None:
        import jax
        from flax import traverse_util

        super().__init__()
        self.network, self.util = network, traverse_util
        ids, t = jax.numpy.zeros((1, L), dtype="int32"), jax.numpy.zeros((1,))
        variables = network.init(jax.random.PRNGKey(0), ids, t=t)
        for name, value in traverse_util.flatten_dict(variables["params"], sep="/").items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value.tolist())))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        flat = {name: value.detach().numpy() for name, value in self.named_parameters()}
        params = self.util.unflatten_dict(flat, sep="/")
        logits, _ = self.network.apply({"params": params}, x_t.numpy(), t=t.numpy())
        return torch.tensor(logits.tolist())


def build(public: Path) -> nn.Module:
    package = ModuleType("md4")  # its own __init__ needs the libraries of training
    package.__path__ = [str(public / "md4")]
    sys.modules["md4"] = package
    return Flax(imported(public, "md4.models.backward").DiscreteClassifier(**SIZES))


def theirs(network: Any, inputs: Tensors) -> dict[str, Tensor]:
    x_t, t = given(inputs)
    logits = network(x_t, t)
    losses = -logits.log_softmax(-1).gather(-1, inputs["x_0"][..., None])[..., 0]
    return {"outputs": logits, "elbo": (losses * (x_t == V) / t[:, None]).sum(1)}


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    x_t, t = given(inputs)
    prediction = converted("md4", state)(x_t, t)
    losses = -prediction.log_prob(inputs["x_0"])
    return {"outputs": prediction.logits, "elbo": (losses * (x_t == V) / t[:, None]).sum(1)}


def given(inputs: Tensors) -> tuple[Tensor, Tensor]:
    """x_t and t."""
    return torch.where(inputs["mask"] > 0, V, inputs["x_0"]), (inputs["level"] + 1) / 100


INPUTS = {"x_0": Input((2, L), below=V), "mask": Input((2, L), below=2), "level": Input((2,), below=97)}
PARITY = Parity("md4_text", INPUTS, build, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)

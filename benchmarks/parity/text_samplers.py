"""Samplers of language models beside the public ones, on one toy network: tokens and numbers of evaluations.

    python benchmarks/parity/text_samplers.py --public DIR

DIR holds copies of ML-GSAI/LLaDA as `LLaDA` and NVlabs/Fast-dLLM as `Fast-dLLM` (with Dream's sampler). A prompt of
five tokens, 16 tokens to generate, [MASK] within the vocabulary. LLaDA: steps and blocks. Fast-dLLM: thresholds, and
the number of evaluations. Dream at temperature 0: its three measures of certainty.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from harness import Input, Parity, Tensors, run
from torch import Tensor, nn

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.samplers import SAMPLERS
from maskgen.samplers.guidance import Guidance

V, D, P, L, MASK = 11, 8, 5, 21, 9
LLADA = [(16, 16), (16, 4), (8, 16), (8, 4), (4, 8)]
"""Steps and length of a block."""
GUIDED = [0.5, 2.0]
"""LLaDA's `cfg_scale`: guidance by the masked prompt; ours is 1 + this."""
THRESHOLDS = [(0.2, 16), (0.2, 4), (0.14, 8), (0.9, 8)]
"""Threshold and length of a block."""
DREAM = {"entropy": "entropy", "margin": "topk_margin", "confidence": "maskgit_plus"}
"""Our name of a measure, and Dream's."""


class Toy(nn.Module):
    """Tokens (B, L) -> logits (B, L, V) that depend on all tokens; [MASK] has none. Counts its calls."""

    def __init__(self, public: Path | None = None) -> None:
        super().__init__()
        self.public = public
        self.embedding, self.mixing = nn.Parameter(torch.empty(V, D)), nn.Parameter(torch.empty(L, L))
        self.places, self.head = nn.Parameter(torch.empty(L, D)), nn.Parameter(torch.empty(V, D))
        self.device, self.n_calls = torch.device("cpu"), 0

    def logits(self, x_t: Tensor) -> Tensor:
        x = self.embedding[x_t]
        logits = 2 * torch.tanh(self.mixing @ x + 0.5 * x + self.places) @ self.head.T
        return logits.index_fill(-1, torch.tensor([MASK]), -1e9)  # finite: guidance takes differences

    def forward(self, x_t: Tensor, *_: object, **__: object) -> Any:
        self.n_calls += 1
        return SimpleNamespace(logits=self.logits(x_t))


def theirs(network: Toy, inputs: Tensors) -> dict[str, Tensor]:
    assert network.public is not None
    prompt, found = inputs["prompt"], {"logits": first_logits(network, inputs)}
    llada = loaded(network.public / "LLaDA" / "generate.py").generate
    for steps, length in LLADA:
        found[f"llada {steps} {length}"] = counted(
            network, lambda s=steps, n=length: llada(network, prompt, None, s, L - P, n, mask_id=MASK)
        )
    seen = torch.ones_like(prompt)  # the public code needs it with guidance
    for w in GUIDED:
        found[f"llada guided {w}"] = counted(
            network, lambda w=w: llada(network, prompt, seen, 8, L - P, 4, cfg_scale=w, mask_id=MASK)
        )
    sys.modules.setdefault("model", ModuleType("model"))
    sys.modules["model.modeling_llada"] = stub("model.modeling_llada", LLaDAModelLM=Toy)
    fast = loaded(network.public / "Fast-dLLM" / "llada" / "generate.py").generate
    for tau, length in THRESHOLDS:
        found[f"fast_dllm {tau} {length}"] = counted(
            network, lambda t=tau, n=length: fast(network, prompt, L - P, L - P, n, mask_id=MASK, threshold=t)[0]
        )
    dream = loaded(network.public / "Fast-dLLM" / "dream" / "model" / "generation_utils.py")
    shifted = Shifted(network)
    for ours, name in DREAM.items():
        config = SimpleNamespace(
            output_history=False, return_dict_in_generate=False, max_length=L, mask_token_id=MASK, steps=10, eps=1e-3,
            alg=name, alg_temp=0.0, temperature=0.0, top_p=None, top_k=None,
        )  # fmt: skip
        hooks = (lambda _, x, __: x, lambda _, __, logits: logits)
        found[f"dream {ours}"] = counted(
            network, lambda c=config, h=hooks: dream.DreamGenerationMixin._sample(shifted, prompt, None, c, *h)
        )
    return found


def ours(state: dict[str, Tensor], inputs: Tensors) -> dict[str, Tensor]:
    network = Toy()
    network.load_state_dict(state)
    found = {"logits": first_logits(network, inputs)}
    for steps, length in LLADA:
        found[f"llada {steps} {length}"] = sampled(
            network, inputs, {"type": "llada", "steps": steps, "block_length": length}
        )
    for w in GUIDED:
        guidance = Guidance(1 + w)
        found[f"llada guided {w}"] = sampled(
            network, inputs, {"type": "llada", "steps": 8, "block_length": 4}, guidance
        )
    for tau, length in THRESHOLDS:
        spec = {"type": "fast_dllm", "threshold": tau, "block_length": length}
        found[f"fast_dllm {tau} {length}"] = sampled(network, inputs, spec)
    for name in DREAM:
        spec = {"type": "dream", "steps": 10, "temperature": 0.0, "order": name, "top_p": 1.0}
        found[f"dream {name}"] = sampled(network, inputs, spec)
    return found


class Shifted:
    """The toy network as Dream's sampler calls it: the logits of token i come from position i - 1."""

    def __init__(self, network: Toy) -> None:
        self.network, self.device = network, network.device

    def __call__(self, x_t: Tensor, *_: object) -> Any:
        return SimpleNamespace(logits=self.network(x_t).logits.roll(-1, 1))


def first_logits(network: Toy, inputs: Tensors) -> Tensor:
    """Logits of the prompt followed by [MASK], without that of [MASK]."""
    logits = network.logits(start(inputs))
    return logits[..., [token for token in range(V) if token != MASK]]


def start(inputs: Tensors) -> Tensor:
    """x_1 (1, L)."""
    return torch.cat([inputs["prompt"], torch.full((1, L - P), MASK)], 1)


def sampled(network: Toy, inputs: Tensors, spec: dict[str, object], guidance: Guidance = Guidance()) -> Tensor:
    """Tokens and evaluations of one of our samplers."""
    sampler = SAMPLERS.build(spec)

    def denoiser(x_t: Tensor, _: Tensor, cond: object = None, *, where: Tensor | None = None) -> Categorical:  # noqa: ARG001
        logits: Tensor = network(x_t).logits
        return Categorical(logits if where is None else logits[where], where)

    denoise = guidance.bind(denoiser, None, mask_id=MASK, prompt=start(inputs) != MASK)
    return counted(network, lambda: sampler(denoise, start(inputs), Rng.per_sample([0]), mask_id=MASK))


def counted(network: Toy, sample: Callable[[], Tensor]) -> Tensor:
    """The tokens (L,) of a sample, followed by the number of evaluations."""
    network.n_calls = 0
    tokens = sample()[0]
    return torch.cat([tokens, torch.tensor([network.n_calls])])


def loaded(file: Path) -> ModuleType:
    """A file of the public code as a module."""
    spec = importlib.util.spec_from_file_location(f"public_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stub(name: str, **attributes: object) -> ModuleType:
    """A module with these attributes."""
    module = ModuleType(name)
    vars(module).update(attributes)
    return module


PARITY = Parity("text_samplers", {"prompt": Input((1, P), below=MASK)}, Toy, theirs, ours)

if __name__ == "__main__":
    run(PARITY, __doc__)

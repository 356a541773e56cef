"""Samplers of language models that draw tokens, beside the public ones: are the samples equal in law?

    python benchmarks/parity/text_laws.py --public DIR [--num N]

DIR holds copies of ML-GSAI/LLaDA as `LLaDA`, NVlabs/Fast-dLLM as `Fast-dLLM` (with Dream's sampler) and
kuleshov-group/remdm as `remdm`. Each sampler draws N rows of three tokens from a toy network, and the frequencies of
all rows are compared by a chi-squared test of two samples. LLaDA's likelihood of an answer is compared with ours in
standard errors.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from scipy import stats
from text_samplers import Toy, loaded, stub
from torch import Tensor
from tqdm import tqdm

from maskgen.core.rng import Rng
from maskgen.evaluation.metrics.choices import answer_nll
from maskgen.samplers import SAMPLERS

V, P, L, MASK, SEED = 4, 1, 4, 3, 0
T = 20
"""Steps of ReMDM."""
SMALLEST = 1e-3
"""Of a p-value; below it two samplers count as different."""
PAST = 1e-4
"""Added to `t_on` and `t_off` of the public ReMDM-loop: its times lie up to 1e-5 above ours, and a step belongs to the
phase of the time before it, so that without it the rise has one step too many and the end one too few."""
REMDM = {
    "cap": {"eta": 0.1}, "rescale": {"eta": 0.3}, "conf": {},
    "loop": {"eta": 0.1, "t_on": 0.55, "t_off": 0.05, "alpha_on": 0.9},
}  # fmt: skip


class Small(Toy):
    """The toy network for one given token and three to generate."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.embedding, self.places, self.head = (torch.nn.Parameter(torch.randn(n, 4)) for n in (V, L, V))
        self.mixing = torch.nn.Parameter(0.5 * torch.randn(L, L))

    def logits(self, x_t: Tensor) -> Tensor:
        x = self.embedding[x_t]
        logits = torch.tanh(self.mixing @ x + 0.5 * x + self.places) @ self.head.T
        return logits.index_fill(-1, torch.tensor([MASK]), -torch.inf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, metavar="DIR", help="folder of the public code")
    parser.add_argument("--num", type=int, default=20_000, metavar="N", help="rows of each sampler")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    network, worst = Small(), 1.0
    for name, (theirs, spec) in samplers(network, options.public, options.num).items():
        torch.manual_seed(SEED + 1)
        p = p_value(theirs(), sampled(network, spec, options.num))
        worst = min(worst, p)
        print(f"{name:<44} p = {p:.3f}")
    z = likelihood(network, options.public)
    print(f"{'likelihood of an answer':<44} {z:.2f} standard errors apart")
    if worst < SMALLEST or z > 3:
        raise SystemExit("a sampler or the likelihood differs from the public one")


def samplers(network: Small, public: Path, n: int) -> dict[str, tuple[Callable[[], Tensor], dict[str, object]]]:
    """Name -> the public sampler of (n, 3) tokens, and our specification."""
    prompt = torch.zeros(n, P, dtype=torch.int64)
    llada = loaded(public / "LLaDA" / "generate.py").generate
    sys.modules.setdefault("model", ModuleType("model"))
    sys.modules["model.modeling_llada"] = stub("model.modeling_llada", LLaDAModelLM=Toy)
    dream = loaded(public / "Fast-dLLM" / "dream" / "model" / "generation_utils.py").DreamGenerationMixin._sample
    found: dict[str, tuple[Callable[[], Tensor], dict[str, object]]] = {
        "llada, temperature 0.7": (
            lambda: llada(network, prompt, None, 3, L - P, L - P, 0.7, mask_id=MASK)[:, P:],
            {"type": "llada", "steps": 3, "temperature": 0.7},
        )
    }
    for alg, order, more in (
        ("origin", "origin", {"temperature": 0.0, "top_p": None, "alg_temp": None}),
        ("entropy", "entropy", {"temperature": 0.2, "top_p": 0.95, "alg_temp": 0.0}),
        ("entropy", "entropy", {"temperature": 0.7, "top_p": 0.9, "alg_temp": 0.5}),
        ("maskgit_plus", "confidence", {"temperature": 0.7, "top_p": 0.9, "alg_temp": 0.0}),
        ("topk_margin", "margin", {"temperature": 0.7, "top_p": None, "alg_temp": 0.0}),
    ):
        settings = {key: more[key] or float(key == "top_p") for key in ("temperature", "top_p", "alg_temp")}
        name = f"dream {order}, T {settings['temperature']}, top_p {settings['top_p']}, alg {settings['alg_temp']}"
        found[name] = (
            lambda alg=alg, more=more: dream_sample(dream, network, prompt, alg, more),
            {"type": "dream", "steps": 3, "order": order, **settings},
        )
    for name, settings in REMDM.items():
        found[f"remdm {name}, nucleus 0.8"] = (
            lambda name=name, settings=settings: remdm(network, public, name, settings, n),
            {"type": f"remdm_{name}", "steps": T, "top_p": 0.8, **settings},
        )
    return found


def dream_sample(sample: Any, network: Small, prompt: Tensor, alg: str, more: dict[str, Any]) -> Tensor:
    """Tokens (n, 3) of Dream's sampler, whose network predicts a token from the place before it."""
    config = SimpleNamespace(
        output_history=False, return_dict_in_generate=False, max_length=L, mask_token_id=MASK, steps=3, eps=1e-3,
        alg=alg, top_k=None, **more,
    )  # fmt: skip

    class Shifted:
        device = network.device

        def __call__(self, x_t: Tensor, *_: object) -> Any:
            return SimpleNamespace(logits=network(x_t).logits.roll(-1, 1))

    tokens: Tensor = sample(Shifted(), prompt, None, config, lambda _, x, __: x, lambda _, __, logits: logits)
    return tokens[:, P:]


def remdm(network: Small, public: Path, name: str, settings: dict[str, float], n: int) -> Tensor:
    """Tokens (n, 3) of ReMDM's sampler; only the functions that sample are taken from its file."""
    wanted = {"_sample_categorical", "_ddpm_caching_update", "_sample"}
    tree = ast.parse((public / "remdm" / "diffusion.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in wanted]
    for node in nodes:
        node.decorator_list = []
    space: dict[str, Any] = {"torch": torch, "tqdm": lambda steps: tqdm(steps, disable=True)}
    exec(compile(ast.Module(nodes, []), "remdm", "exec"), space)
    given = torch.zeros(n, P, dtype=torch.int64)

    def forward(x: Tensor, _: object) -> Tensor:
        logits = network(torch.cat([given, x], 1)).logits[:, P:].log_softmax(-1)
        visible = torch.nn.functional.one_hot(x, V).float().log()
        return torch.where((x == MASK)[..., None], logits, visible)

    settings = {key: value + PAST if key in ("t_on", "t_off") else value for key, value in settings.items()}
    config = SimpleNamespace(
        noise=SimpleNamespace(type="loglinear"), loader=SimpleNamespace(eval_batch_size=n),
        model=SimpleNamespace(length=L - P),
        sampling=SimpleNamespace(
            steps=T, nucleus_p=0.8, sampler=f"remdm-{name}", dfm=False, noise_removal=True, **settings
        ),
    )  # fmt: skip
    model = SimpleNamespace(
        config=config, device=torch.device("cpu"), parameterization="subs", sampler="ddpm_cache", mask_index=MASK,
        time_conditioning=True, forward=forward, noise=lambda t: (t, None),
        _sample_prior=lambda rows, length: torch.full((rows, length), MASK),
        _ddpm_caching_update=lambda *args, p_x0, conf: space["_ddpm_caching_update"](model, *args, p_x0, conf.float()),
    )  # fmt: skip
    tokens: Tensor = space["_sample"](model)
    return tokens


def sampled(network: Small, spec: dict[str, object], n: int) -> Tensor:
    """Tokens (n, 3) of our sampler."""
    x_1 = torch.cat([torch.zeros(n, P, dtype=torch.int64), torch.full((n, L - P), MASK)], 1)

    def denoise(x_t: Tensor, _: Tensor, *, where: Tensor | None = None) -> Tensor:  # noqa: ARG001
        logits: Tensor = network(x_t).logits
        return logits

    return SAMPLERS.build(spec)(denoise, x_1, Rng.stream(SEED), mask_id=MASK)[:, P:]


def p_value(one: Tensor, other: Tensor) -> float:
    """Of the hypothesis that two samples of rows (n, 3) come from one law; rare rows are put together."""
    weights = V ** torch.arange(L - P)
    counts = torch.stack([(rows * weights).sum(1).bincount(minlength=V ** (L - P)) for rows in (one, other)])
    counts = counts[:, counts.sum(0).sort(descending=True).indices]
    n_common = max(int((counts.sum(0) >= 20).sum()), 1)
    table = torch.cat([counts[:, :n_common], counts[:, n_common:].sum(1, keepdim=True)], 1)
    table = table[:, table.sum(0) > 0]
    return 1.0 if table.shape[1] == 1 else float(stats.chi2_contingency(table.numpy()).pvalue)


def likelihood(network: Small, public: Path) -> float:
    """Difference of LLaDA's likelihood of answers from ours, in standard errors of both."""
    theirs = loaded(public / "LLaDA" / "get_log_likelihood.py").get_log_likelihood
    prompt, z = torch.zeros(P, dtype=torch.int64), 0.0

    def denoise(x_t: Tensor, _: Tensor, *, where: Tensor | None = None) -> Tensor:  # noqa: ARG001
        logits: Tensor = network(x_t).logits
        return logits

    for answer in map(torch.tensor, itertools.islice(itertools.product(range(V - 1), repeat=L - P), 0, 27, 9)):
        torch.manual_seed(SEED)
        found = torch.tensor([theirs(network, prompt, answer, 16, 16, 0.0, MASK) for _ in range(200)]).double()
        ours = answer_nll(denoise, prompt, answer, Rng.stream(SEED), 128, mask_id=MASK)
        z = max(z, abs(float(found.mean()) + ours.nats) / float(found.std() / math.sqrt(len(found))))
    return z


if __name__ == "__main__":
    main()

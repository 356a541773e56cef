"""GenMD4: learned masking rates, one per token of the vocabulary."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Batch, Denoiser, Loss
from maskgen.core.rng import Rng
from maskgen.core.traits import network_of
from maskgen.objectives.base import (
    OBJECTIVES,
    Objective,
    ObjectiveTraits,
    draw_times,
    mean_of,
    refuse_dropping,
    sum_of,
)
from maskgen.processes import Process, StateDependent


@OBJECTIVES.register("state_dependent")
class StateDependentTokens(Objective):
    """Bound on nats a token with learned rates (GenMD4, arXiv 2406.04329, section 6), two passes a step.

    Two mask draws at the same t give the gradient of the rates: pathwise through the weights, and leave-one-out
    through the masks. Needs a model with `exponents`.

    Args:
        process: state_dependent.
    """

    traits = ObjectiveTraits("masking", "discrete", learns_exponents=True)

    def __init__(self, process: Process) -> None:
        if not isinstance(process, StateDependent):
            raise ValueError("objective state_dependent needs process state_dependent")
        self.process = process
        self.baseline = math.log(process.mask_id)

    def __call__(self, model: Denoiser, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:
        """batch.x_0 (B, L) -> Loss; `loss` in the logs is the bound, without the gradient term of the rates."""
        refuse_dropping(keep_ratio)
        x_0, process = batch.x_0, self.process
        exponents = network_of(model).exponents
        if exponents is None:
            raise ValueError("objective state_dependent needs a model with rates: model.has_exponents: true")
        t = process.t_min + (1 - process.t_min) * draw_times(len(x_0), rng, x_0.device)
        x_t = torch.cat([process.corrupt(x_0, t, process.draw_noise(x_0, rng), exponents.detach()) for _ in range(2)])
        where, twice = x_t == process.mask_id, x_0.repeat(2, 1)
        answer = model(x_t, t.float().repeat(2), where=where)
        logits = categorical_at(answer, where, vocab_size=process.mask_id).logits.float()  # (M, V)
        # index_select: exponents[x_0] has a backward pass that adds in no fixed order when several threads work.
        own = exponents.index_select(0, x_0.flatten()).view_as(x_0)  # (B, L)
        terms = integrand(logits, twice[where], exponents, t.float().repeat(2)[:, None].expand(where.shape)[where])
        row = torch.arange(len(where), device=x_0.device)[:, None].expand(where.shape)[where]
        sums = terms.new_zeros(len(where)).index_add(0, row, terms) * (1 - process.t_min)
        first, second = sums.chunk(2)
        log_chance = log_mask_probability(where, own.repeat(2, 1), t.float().repeat(2))
        score = log_chance[: len(x_0)] - log_chance[len(x_0) :]
        bound = ((first + second) / 2 + reconstruction(own, exponents, process.t_min)).sum() / x_0.numel()
        value = bound + 0.5 * ((first - second).detach() * score).sum() / x_0.numel()
        cross_entropy = F.cross_entropy(logits.detach(), twice[where], reduction="none")
        is_right = (logits.detach().argmax(-1) == twice[where]).float()
        logs = {"loss": mean_of(bound), "cross_entropy": sum_of(cross_entropy), "accuracy": sum_of(is_right)}
        return Loss(value, logs)


def integrand(logits: Tensor, target: Tensor, exponents: Tensor, t: Tensor) -> Tensor:
    """(M,) nats: sum_v (w_v / t) (mu_v - d(v, x) - d(v, x) log mu_v) at M masked positions (GenMD4, eq. 11).

    `logits` (M, V), `target` x and `t` (M,), `exponents` w (V,).
    """
    log_mu = F.log_softmax(logits, -1)
    own = log_mu.gather(-1, target[:, None])[:, 0]
    # A sum, as autocast computes matrix products in half precision and the result is divided by t.
    return ((log_mu.exp() * exponents).sum(-1) - exponents.index_select(0, target) * (1 + own)) / t


def log_mask_probability(is_masked: Tensor, own: Tensor, t: Tensor) -> Tensor:
    """(B,) log q(x_t | x_0): masked with chance t^w; `own` (B, L) is the exponent w of each token, `t` (B,)."""
    log_ratio = own * t.log()[:, None]
    # Visible tokens at t = 1 have chance 0 and do not occur; their log must not enter the gradient either.
    visible = torch.where(is_masked, -1.0, log_ratio).clamp(max=-1e-7)
    return torch.where(is_masked, log_ratio, torch.log(-torch.expm1(visible))).sum(1)


def reconstruction(own: Tensor, exponents: Tensor, t_min: float) -> Tensor:
    """(B,) nats of the reconstruction at t_min, where masked tokens are predicted from the rates; `own` (B, L)."""
    log_t = math.log(t_min)
    return ((own * log_t).exp() * (torch.logsumexp(exponents * log_t, 0) - own * log_t)).sum(1)

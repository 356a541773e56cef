"""The variational bound that trains the variance of reverse steps (improved DDPM, arXiv 2102.09672)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.predictions import Field
from maskgen.processes import Gaussian
from maskgen.processes.gaussian import per_row


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) of one step of T, s = t - 1/T: mean from_clean x_0 + from_noisy x_t; each (B,) float64.

    Attributes:
        from_clean, from_noisy: of the mean.
        log_variance: of q; at the first step that of the second, as its own is zero.
        log_beta: its upper bound.
    """

    from_clean: Tensor
    from_noisy: Tensor
    log_variance: Tensor
    log_beta: Tensor


def posterior(process: Gaussian, t: Tensor) -> Posterior:
    """The posterior of the variance-preserving x_t at t (B,), multiples of 1/T (DDPM, arXiv 2006.11239, eq. 6 and 7).

    Raises:
        ValueError: see `Gaussian.require_reverse_steps`.
    """
    process.require_reverse_steps()
    t = t.double()
    now, before = process.schedule.alpha(t), process.schedule.alpha((t - 1 / process.steps).clamp(min=0))
    beta = 1 - now / before
    second = t.clamp(min=2 / process.steps)
    now_2, before_2 = process.schedule.alpha(second), process.schedule.alpha(second - 1 / process.steps)
    variance = (1 - now_2 / before_2) * (1 - before_2) / (1 - now_2)
    from_clean = before.sqrt() * beta / (1 - now)
    from_noisy = (now / before).sqrt() * (1 - before) / (1 - now)
    return Posterior(from_clean, from_noisy, variance.log(), beta.log())


def variational_bound(process: Gaussian, field: Field, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """(B,) bits per dimension: KL of the reverse step; at the first step -log p of x_0 in bins of 1/127.5 over [-1, 1].

    Only the variance has a gradient. x_0, x_t (B, L, D), t (B,); a field of kept tokens is compared on these.
    """
    q = posterior(process, t)
    clean = process.clean(_all(field, field.value.detach().float()), x_t, t)
    assert field.variance is not None
    share = (_all(field, field.variance.float()) + 1) / 2
    log_variance = torch.lerp(per_row(q.log_variance, x_t), per_row(q.log_beta, x_t), share)
    gap = per_row(q.from_clean, x_t) * (clean - x_0)
    log_q = per_row(q.log_variance, x_t)
    kl = 0.5 * (-1 + log_variance - log_q + (log_q - log_variance).exp() + gap.square() * (-log_variance).exp())
    mean = per_row(q.from_clean, x_t) * clean + per_row(q.from_noisy, x_t) * x_t
    is_first = per_row((t * process.steps).round() <= 1, x_t).bool()
    bits = torch.where(is_first, -discretised_log_prob(x_0, mean, log_variance / 2), kl) / math.log(2)
    return (bits if field.subset is None else field.subset.gather(bits)).mean((1, 2))


def _all(field: Field, values: Tensor) -> Tensor:
    """Values of the kept tokens at their positions, zeros elsewhere."""
    return values if field.subset is None else field.subset.scatter(values)


def discretised_log_prob(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log of a normal's mass in the bin of width 2/255 around x, the outer bins open (DDPM, eq. 13); any shape."""
    scale = (-log_scale).exp()
    above = torch.special.ndtr((x - mean + 1 / 255) * scale)
    below = torch.special.ndtr((x - mean - 1 / 255) * scale)
    above = torch.where(x > 0.999, 1.0, above)
    below = torch.where(x < -0.999, 0.0, below)
    return (above - below).clamp(min=1e-12).log()

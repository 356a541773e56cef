"""Estimates of -log p and of upper bounds on it, row by row: what each kind of model allows.

All give float64 nats, summed over the row's tokens. Bounds are given in strata, (B, strata): each column draws the
masking level from its own stratum, and the mean over columns is unbiased.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.positions import categorical_at
from maskgen.core.predictions import Categorical, Condition, Denoiser
from maskgen.core.rng import Rng
from maskgen.core.traits import traits_of
from maskgen.data.text.rows import document_ids
from maskgen.objectives.state_dependent import integrand, reconstruction
from maskgen.schedules import Fixed, Linear, Schedule


def exact_nll(model: Any, x_0: Tensor, cond: Condition | None = None) -> Tensor:
    """-log p by the chain rule, x_0 (B, L) -> (B,) float64 nats; logits at i of `model(x_0, t)` see tokens < i only."""
    t = torch.zeros(len(x_0), device=x_0.device)
    log_probs: Tensor = model(x_0, t, cond).log_prob(x_0)
    return -log_probs.double().sum(1)


def count_bound(
    model: Callable[..., Categorical | Tensor],
    x_0: Tensor,
    rng: Rng,
    strata: int,
    schedule: Schedule = Linear(),
    cond: Condition | None = None,
    *,
    mask_id: int,
    eos: int | None = None,
) -> Tensor:
    """L/k times the cross-entropy of k masked tokens, k uniform over 1..L: (B, strata) float64 nats.

    The mean over strata is an unbiased estimate of the bound, without truncation at t = 0. Column j draws
    k = 1 + floor(L (j + u) / strata), of which every k is equally likely over a uniform j (LLaDA, arXiv 2502.09992,
    eq. 6; RADD, arXiv 2406.03736).

    The time of a mask: over mask ratios r the bound is int_0^1 1/r E[cross-entropy of Bernoulli(r) masks] dr. The part
    with k masks weighs C(L, k) r^(k-1) (1 - r)^(L-k), 1/k times the density of Beta(k, L - k + 1): given k, r has that
    law, as has the k-th smallest of L uniform numbers, whose k smallest are masked; t = alpha^-1(1 - r). The bound has
    no schedule: a network trained with `fixed`, where times carry no information, is given those of `linear`.

    A model with `block_length` is given a k for each block, and all blocks in one pass beside `clean` = x_0 (BD3-LM,
    arXiv 2503.09573, eq. 8); its time is the first block's, as in training. Blocks of one token need one column. With
    `eos` the documents of a row do not see each other, as in training with document attention.
    """
    block_length = traits_of(model).block_length
    size = min(block_length or x_0.shape[1], x_0.shape[1])
    strata = 1 if block_length == 1 else strata
    schedule = Linear() if isinstance(schedule, Fixed) else schedule
    more = {} if block_length is None else {"clean": x_0}
    more |= {} if eos is None else {"documents": document_ids(x_0, eos)}
    columns = []
    for stratum in range(strata):
        is_masked, weight, ratio = _draw_counted(x_0, size, rng, stratum, strata)
        t = schedule.inverse(1 - ratio[:, 0]).clamp(0, 1)
        x_t = torch.where(is_masked, mask_id, x_0)
        log_probs = _log_prob(model(x_t, t.float(), cond, where=is_masked, **more), x_0, is_masked)
        columns.append((weight * _spread(-log_probs, is_masked)).sum(1))
    return torch.stack(columns, 1)


def time_bound(
    model: Denoiser, x_0: Tensor, schedule: Schedule, rng: Rng, strata: int, steps: int | None = None, *, mask_id: int
) -> Tensor:
    """The bound as an integral over time with Bernoulli masks: (B, strata) float64 nats, unbiased over their mean.

    In continuous time the masked cross-entropy weighs -alpha' / (1 - alpha) (MD4, arXiv 2406.04329, eq. 5; MDLM, arXiv
    2406.07524). With `steps` = T, t is on the grid 1/T, ..., 1 and the weight is T (alpha_s - alpha_t) / (1 - alpha_t),
    s = t - 1/T: a looser bound. The schedule must run from 1 to 0. A draw has infinite variance where alpha falls
    linearly at t = 0; `count_bound` is the estimator to use, this one is its check.
    """
    columns = []
    for stratum in range(strata):
        level = (stratum + 1 - rng.uniform((len(x_0),), device=x_0.device)) / strata  # in (0, 1]
        if steps is None:
            t, weight = level, schedule.elbo_weight(level)
        else:
            t = torch.ceil(level * steps) / steps
            alpha = schedule.alpha(t)
            weight = steps * (schedule.alpha((t - 1 / steps).clamp(min=0)) - alpha) / (1 - alpha)
        is_masked = rng.uniform(x_0.shape, device=x_0.device) < schedule.mask_ratio(t)[:, None]
        x_t = torch.where(is_masked, mask_id, x_0)
        log_probs = _log_prob(model(x_t, t.float(), where=is_masked), x_0, is_masked)
        columns.append(weight * _spread(-log_probs, is_masked).sum(1))
    return torch.stack(columns, 1)


def state_dependent_bound(
    model: Denoiser,
    exponents: Tensor,
    x_0: Tensor,
    rng: Rng,
    strata: int,
    t_min: float = 1e-3,
    cond: Condition | None = None,
    *,
    mask_id: int,
) -> Tensor:
    """The bound of GenMD4, where token v has alpha = 1 - t^w_v: (B, strata) float64 nats, unbiased over their mean.

    int_t_min^1 sum over masked l of 1/t [sum_v w_v mu_v - w_x (1 + log mu_x)] dt, plus what is left at t_min: a masked
    token is decoded there with chances in proportion to t_min^w_v (arXiv 2406.04329, section on state-dependent
    schedules). The interval's length 1 - t_min is counted.

    Args:
        model: predicts mu.
        exponents: w (V,) positive.
        x_0: (B, L) int64.
        rng: draws times and masks.
        strata: of the times.
        t_min: where the integral ends, in (0, 1).
        cond: condition of the rows.
        mask_id: V.
    """
    w, columns = exponents.detach().double(), []
    rest = reconstruction(w[x_0], w, t_min)
    for stratum in range(strata):
        level = (stratum + 1 - rng.uniform((len(x_0),), device=x_0.device)) / strata
        t = t_min + (1 - t_min) * level
        is_masked = rng.uniform(x_0.shape, device=x_0.device) < t[:, None] ** w[x_0]
        answer = model(torch.where(is_masked, mask_id, x_0), t.float(), cond, where=is_masked)
        logits = categorical_at(answer, is_masked).logits  # (M, V)
        at = t[:, None].expand(x_0.shape)[is_masked]
        terms = integrand(logits.double(), x_0[is_masked], w, at)
        columns.append((1 - t_min) * _spread(terms, is_masked).sum(1) + rest)
    return torch.stack(columns, 1)


def _draw_counted(x_0: Tensor, size: int, rng: Rng, stratum: int, strata: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (B, L) of k tokens a block, their weight (block's length) / k (B, L), mask ratios (B, blocks) given k."""
    rows, length = x_0.shape
    n_blocks = -(-length // size)
    lengths = torch.full((n_blocks,), size, device=x_0.device)
    lengths[-1] = length - (n_blocks - 1) * size
    level = (stratum + rng.uniform((rows, n_blocks), device=x_0.device)) / strata
    count = torch.minimum(1 + (lengths * level).long(), lengths)[..., None]  # the minimum: level can round up to 1
    noise = F.pad(rng.uniform((rows, length), device=x_0.device), (0, n_blocks * size - length), value=math.inf)
    order = noise.view(rows, n_blocks, size).sort(-1)
    is_masked = order.indices.argsort(-1) < count
    weight = (lengths[:, None] / count.double()).expand(is_masked.shape)
    return is_masked.flatten(1)[:, :length], weight.flatten(1)[:, :length], order.values.gather(-1, count - 1)[..., 0]


def _log_prob(answer: Categorical | Tensor, x_0: Tensor, is_masked: Tensor) -> Tensor:
    """(M,) log-probability of the masked tokens of x_0 (B, L), from the output of a denoiser."""
    return categorical_at(answer, is_masked).log_prob(x_0[is_masked])


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """Packed (M,) -> (B, L) float64, zero elsewhere."""
    return torch.zeros(where.shape, dtype=torch.float64, device=where.device).masked_scatter(where, values.double())

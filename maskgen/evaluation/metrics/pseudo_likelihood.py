"""Pseudo-log-likelihood of an answer under a masked language model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskgen.core.devices import device_of
from maskgen.core.predictions import Categorical
from maskgen.core.traits import traits_of
from maskgen.evaluation.metrics.choices import AnswerMasks, masked_costs
from maskgen.schedules import Fixed, Linear, Schedule


@torch.no_grad()
def pseudo_nll(
    model: Callable[..., Categorical | Tensor],
    prompt: Tensor,
    answer: Tensor,
    window: int | None,
    schedule: Schedule = Linear(),
    *,
    mask_id: int,
) -> float:
    """-sum_i log p(answer_i | prompt, answer without tokens i ... i + window - 1), in nats; one pass a token.

    Window 1 is the pseudo-log-likelihood of Salazar et al. (arXiv 1910.14659). A larger one hides the neighbours to the
    right, which may give the token away as parts of its word (arXiv 2406.04823). Neither is a likelihood: the factors
    are no chain rule. None masks everything to the right, which is one: from left to right.

    Args:
        model: a denoiser in evaluation mode, with full attention.
        prompt, answer: (P,) and (n,) int64; the prompt may be empty.
        window: masked tokens.
        schedule: of the times given to a time-conditioned model.
        mask_id: V.

    Raises:
        ValueError: an empty answer, a window below 1, or a network that sees nothing to the right.
    """
    traits, n = traits_of(model), len(answer)
    if not n or (window is not None and window < 1):
        raise ValueError(f"needs an answer and a window of at least 1, got {n} tokens and window {window}")
    if traits.is_autoregressive or traits.block_length is not None or traits.has_exponents:
        raise ValueError("a pseudo-likelihood needs a masked network with full attention; use the likelihood (choices)")
    row = torch.cat([prompt, answer])[None].to(device_of(model, prompt.device))
    place = torch.arange(n)
    after = place[None] - place[:, None]
    masks = (after >= 0) & (after < (n if window is None else window))  # (n, n), row i scores token i
    ratios = masks.sum(1).double() / row.shape[1]
    times = (Linear() if isinstance(schedule, Fixed) else schedule).inverse(1 - ratios).clamp(0, 1).float()
    drawn = AnswerMasks(masks, torch.eye(n, dtype=torch.float64), ratios, is_fixed=True)
    return float(masked_costs(model, row, drawn, times, mask_id).sum())

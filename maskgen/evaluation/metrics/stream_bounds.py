"""Bounds on -log p of one stream of a row, given others: of a caption given its picture, and the reverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition, Denoiser
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.evaluation.metrics.bounds import count_bound
from maskgen.processes import put_masks
from maskgen.schedules import Linear, Schedule


@dataclass(frozen=True)
class GivenStreams:
    """A denoiser of one stream's tokens (B, L_s), the other streams as they are in `rows`.

    Args:
        denoiser: of whole rows.
        layout: of the rows.
        rows: (B, L) of the streams that are given, [MASK] in all others.
        target: name of the stream.
    """

    denoiser: Denoiser
    layout: TokenLayout
    rows: Tensor
    target: str

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,  # noqa: ARG002 - all tokens are computed
        where: Tensor | None = None,
    ) -> Categorical:
        """x_t (B, L_s) of global ids -> logits at `where` (B, L_s), of all ids."""
        row, place, queried = self.rows.clone(), self.layout.place(self.target), torch.zeros_like(self.rows).bool()
        row[:, place] = x_t
        queried[:, place] = torch.ones_like(x_t).bool() if where is None else where
        answer = self.denoiser(row, t, cond, where=queried)
        logits = answer if isinstance(answer, Tensor) else answer.logits
        logits = logits[queried] if logits.ndim == 3 else logits
        return Categorical(logits.view(*x_t.shape, -1)) if where is None else Categorical(logits, where)


def stream_bound(
    denoiser: Denoiser,
    layout: TokenLayout,
    rows: Tensor,
    target: str,
    given: Sequence[str],
    rng: Rng,
    strata: int = 8,
    schedule: Schedule = Linear(),
) -> Tensor:
    """-log p(target | given) of rows (B, L), an upper bound: (B, strata) float64 nats; streams in neither are masked.

    The mean over strata is unbiased, see `count_bound`. With several streams left, -log p(a, b) is at most the bound of
    a given nothing plus that of b given a: for exact posteriors both sides are equal.

    Args:
        denoiser: of rows, limited to the ids of each position's stream (`StreamDenoiser`).
        layout: of the rows.
        rows: whole rows of global ids.
        target: name of the stream that is scored.
        given: names of the streams that it is conditioned on.
        rng: draws the masks.
        strata: evaluations of the network.
        schedule: of training, for networks that are given times.

    Raises:
        ValueError: unknown stream, or the target among the given ones.
    """
    if target in given:
        raise ValueError(f"stream {target!r} is scored and given; leave it out of the given ones")
    is_given = torch.tensor([stream.name in given for stream in layout.streams], device=rows.device)
    for name in given:
        layout.stream(name)
    known = put_masks(rows, ~layout.over_row(is_given[None]).expand(rows.shape), layout.mask_id)
    model = GivenStreams(denoiser, layout, known, target)
    return count_bound(model, rows[:, layout.place(target)], rng, strata, schedule, mask_id=layout.mask_id)

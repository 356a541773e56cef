"""Random orthogonal projection of the patches in place of masking: ROPIM."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskgen.core.check import CheckContext
from maskgen.core.predictions import Batch, Loss, Point
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import is_in_training
from maskgen.objectives.base import (
    OBJECTIVES,
    Objective,
    ObjectiveTraits,
    mean_of,
    number_of,
    refuse_dropping,
    require_shares,
    sum_of,
)


@OBJECTIVES.register("projected_regression")
class ProjectedRegression(Objective):
    """Patches are projected to a random subspace over positions, and what is lost is predicted (ROPIM, CVPR 2023).

    x_t = Q Q^T x_0 with Q (L, K) of orthonormal columns, its own for every image: each projected patch mixes all
    patches, so nothing is [MASK] and the network computes all patches. The loss is the mean |e| of e = (I - Q Q^T)
    (prediction - x_0) (arXiv 2307.04356, section 3.3): the part of the prediction that is in the input costs nothing.

    Args:
        ratio: share of the dimensions that is removed, 1 - K / L.
    """

    traits = ObjectiveTraits("none", "continuous")
    makes_tokens = False

    def __init__(self, ratio: float = 0.75) -> None:
        require_shares(ratio=ratio)
        self.ratio = ratio

    def check(self, context: CheckContext) -> None:
        if context.has_previews:
            raise ValueError("train.preview_every: only a missing part is predicted, no image; use 0")
        if context.traits.subset_is_visible and context.model.get("encoder_sees") != "all":
            raise ValueError(
                "objective: projected_regression has no masked patches, all are encoded; set model.encoder_sees all "
                "and model.decoder linear"
            )

    def __call__(self, model: Callable[..., Point], batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:
        """batch.x_0 (B, L, D) -> Loss."""
        refuse_dropping(keep_ratio)
        x_0 = batch.x_0
        n, length = x_0.shape[:2]
        basis = orthonormal(n, length, max(round(length * (1 - self.ratio)), 1), rng, x_0.device).to(x_0.dtype)
        every = TokenSubset(torch.arange(length, device=x_0.device).expand(n, -1), length)
        t = torch.full((n,), self.ratio, device=x_0.device)
        point = model(projected(x_0, basis), t, batch.cond, subset=every, targets=every)
        off = point.value.float().unflatten(0, (n, length)) - x_0.float()
        error = (off - projected(off, basis.float())).abs().mean(-1).flatten()  # (B L,)
        value = error.sum() / number_of(error, is_in_training(model))
        return Loss(value, {"loss": mean_of(value), "error": sum_of(error)})


def orthonormal(n: int, length: int, rank: int, rng: Rng, device: torch.device) -> Tensor:
    """n bases (n, L, K) of K orthonormal columns: uniformly distributed subspaces, by QR of normal matrices."""
    drawn = rng.normal((n, length, rank), device=device)
    if drawn.is_meta:
        return drawn
    basis: Tensor = torch.linalg.qr(drawn.float())[0]
    return basis


def projected(x: Tensor, basis: Tensor) -> Tensor:
    """Q Q^T x over positions: x (B, L, D), basis (B, L, K)."""
    return basis @ (basis.mT @ x)

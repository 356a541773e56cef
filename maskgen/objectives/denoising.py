"""Squared error of a Gaussian process's target: DiT, MDT, MaskDiT, MicroDiT, rectified flow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from maskgen.core.check import CheckContext
from maskgen.core.predictions import Batch, Field, FieldDenoiser, Loss
from maskgen.core.rng import Rng
from maskgen.core.streams import TokenLayout
from maskgen.core.subset import TokenSubset
from maskgen.core.traits import traits_of
from maskgen.objectives.base import (
    OBJECTIVES,
    NoiseTimes,
    Objective,
    ObjectiveTraits,
    by_quarter,
    dropped,
    mean_of,
    require_shares,
    sum_of,
)
from maskgen.objectives.targets.pixels import normalised
from maskgen.objectives.variance import variational_bound
from maskgen.objectives.weights import Edm, NoiseWeight, OnTarget
from maskgen.processes import Gaussian, Process
from maskgen.processes.gaussian import per_row
from maskgen.processes.preconditioned import Preconditioned


@dataclass(frozen=True)
class _Draw:
    """x_0, noise and x_t (B, L, D) at times t (B,)."""

    x_0: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor


@OBJECTIVES.register("denoising")
class Denoising(Objective):
    """Squared error of the network's output against the process's target, weighted by noise level.

    The network's `masking` decides how dropped tokens are trained: naive and deferred masking have no output for them
    and no loss; MDT is trained on all tokens, in a full and a dropped pass at the same times with independent noise and
    label dropout; MaskDiT's dropped tokens are trained to reconstruct their noisy patch, normalised.

    Args:
        process: gaussian.
        weight: of the squared error by noise level; `target` is the unweighted error of the target.
        label_dropout: share of rows trained without condition, which guidance needs.
        keep_spread: each step lowers the keep ratio by a uniform number below this, one per batch (MDTv2: 0.2).
        reconstruction_weight: of MaskDiT's loss on dropped tokens (its eq. 5).
        layout: of the rows.
    """

    traits = ObjectiveTraits("gaussian", "continuous", drops_tokens=True)

    def __init__(
        self,
        process: Process,
        weight: NoiseWeight = OnTarget(),
        label_dropout: float = 0.1,
        keep_spread: float = 0.0,
        reconstruction_weight: float = 0.1,
        layout: TokenLayout | int = 0,
    ) -> None:
        if not isinstance(process, Gaussian):
            raise ValueError("denoising needs process gaussian; for masking use objective masked_tokens")
        require_shares(label_dropout=label_dropout, keep_spread=keep_spread)
        if reconstruction_weight < 0:
            raise ValueError(f"reconstruction_weight must be at least 0, got {reconstruction_weight}")
        self.process, self.weight = process, weight
        self.label_dropout, self.keep_spread = label_dropout, keep_spread
        self.reconstruction_weight = reconstruction_weight
        self._times = NoiseTimes(process)
        self._width = layout.width if isinstance(layout, TokenLayout) else 0

    def attach(self, network: nn.Module, source: nn.Module | None) -> None:  # noqa: ARG002
        if traits_of(network).reconstructs and self.reconstruction_weight and self._width == 1:
            raise ValueError(
                "objective.reconstruction_weight: the reconstruction is of normalised tokens, these have 1 number; "
                "use tokens of at least 2, or 0"
            )

    def check(self, context: CheckContext) -> None:
        given, traits = context.given, context.traits
        if traits.reconstructs and self.process.target == "eps" and self.reconstruction_weight:
            raise ValueError(
                "process.target: eps says nothing of x_0 where all is noise, which the reconstruction of dropped "
                "tokens needs; use edm, v, flow or x_0, or objective.reconstruction_weight 0"
            )
        if self.keep_spread and context.keep_ratio == 1:
            raise ValueError(
                f"objective.keep_spread: {self.keep_spread} has no effect with train.keep_ratio 1; drop tokens, or "
                "leave it out"
            )
        if "reconstruction_weight" in given and not traits.reconstructs:
            raise ValueError("objective.reconstruction_weight: this network reconstructs nothing; leave it out")
        if isinstance(self.weight, Edm) and self.weight.sigma_data != self.process.sigma_data:
            raise ValueError(
                f"objective.weight: its sigma_data is {self.weight.sigma_data}, the process has "
                f"{self.process.sigma_data}; give both the same"
            )

    def __call__(self, model: FieldDenoiser, batch: Batch, rng: Rng, *, keep_ratio: float = 1.0) -> Loss:
        """batch.x_0 (B, L, D) -> Loss.

        Raises:
            ValueError: keep_ratio below 1 for a network that drops nothing.
        """
        x_0 = batch.x_0
        t = self._times(len(x_0), rng, x_0.device)
        is_two_pass = keep_ratio < 1 and traits_of(model).is_two_pass
        subset = self._subset(x_0, keep_ratio, rng) if keep_ratio < 1 else None
        if subset is not None and subset.keep.shape[1] == x_0.shape[1] and not is_two_pass:
            subset = None  # rounded to no dropped token
        value, logs = self._pass(model, batch, t, rng, subset)
        if is_two_pass:
            full, logs = self._pass(model, batch, t, rng, None)
            value = value + full
        return Loss(value, {"loss": mean_of(value)} | logs)

    def _subset(self, x_0: Tensor, keep_ratio: float, rng: Rng) -> TokenSubset:
        if self.keep_spread:
            keep_ratio = max(keep_ratio - self.keep_spread * float(rng.whole.fork("keep").uniform((1,))), 1e-6)
        return TokenSubset.draw(len(x_0), x_0.shape[1], keep_ratio, rng, x_0.device)

    def _pass(
        self, model: FieldDenoiser, batch: Batch, t: Tensor, rng: Rng, subset: TokenSubset | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and logs of one pass of the network over the batch, with newly drawn noise."""
        noise = self.process.draw_noise(batch.x_0, rng)
        draw = _Draw(batch.x_0, noise, self.process.corrupt(batch.x_0, t, noise), t)
        cond = dropped(batch.cond, self.label_dropout, model, rng)
        field = Preconditioned(self.process, model)(draw.x_t, t, cond, subset=subset)
        target = self.process.output_target(draw.x_0, noise, t)
        error = (field.value.float() - (target if field.subset is None else field.subset.gather(target))).square()
        is_reconstructed = subset is not None and traits_of(model).reconstructs
        if is_reconstructed:
            assert subset is not None
            error = subset.gather(error)
        rows = error.mean((1, 2))
        weight = self.weight(self.process.snr(t), self.process.scalings(t).c_out) * self.process.scalings(t).c_out ** 2
        value = (weight.float() * rows).mean()
        logs = {"squared_error": sum_of(rows)} | by_quarter("squared_error", rows.detach(), t.float(), "noise")
        if field.variance is not None:
            bound = variational_bound(self.process, field, draw.x_0, draw.x_t, t)
            value, logs["variational_bound"] = value + bound.mean(), sum_of(bound)
        if is_reconstructed and self.reconstruction_weight:
            assert subset is not None
            missing = self._reconstruction(field, draw, subset)
            value, logs["reconstruction"] = value + self.reconstruction_weight * missing, mean_of(missing)
        return value, logs

    def _reconstruction(self, field: Field, draw: _Draw, subset: TokenSubset) -> Tensor:
        """Squared error of x_0 on dropped tokens against the noisy token, normalised over its numbers (MaskDiT)."""
        a, _ = self.process.amplitudes(draw.t)
        noisy = draw.x_t / per_row(a, draw.x_t)
        clean = self.process.clean(field.value.float(), draw.x_t, draw.t)
        return (clean - normalised(noisy)).square().mean(-1)[~subset.is_kept()].mean()

"""Predictions over continuous tokens: each is sampled by a small diffusion model (MAR, arXiv 2406.11838)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from maskgen.core.predictions import Condition, DenoiseField, Field, over_positions
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.processes import Gaussian
from maskgen.processes.preconditioned import Preconditioned


class HeadNet(Protocol):
    """The head's network: tokens x (N, D), c_noise (N,), condition z (N, C) -> (N, D), or (N, 2 D) with a variance."""

    def __call__(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor: ...


class TokenSolver(Protocol):
    """Samples a Gaussian process: `samplers.FieldSampler`, in a higher layer than this module."""

    def __call__(
        self, denoise: DenoiseField, noise: Tensor, rng: Rng, *, process: Gaussian, temperature: float = 1.0
    ) -> Tensor:
        """noise (B, L, D) -> x_0 (B, L, D); temperature multiplies the noise added by its steps."""


@dataclass(frozen=True)
class HeadField:
    """A `FieldDenoiser` of N tokens, each a row (N, 1, D), with their conditions z (N, C) bound."""

    net: HeadNet
    z: Tensor
    has_variance: bool

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,  # noqa: ARG002 - one signature for all denoisers
        *,
        subset: TokenSubset | None = None,  # noqa: ARG002
        where: Tensor | None = None,  # noqa: ARG002
    ) -> Field:
        output = self.net(x_t[:, 0], t, self.z)[:, None]
        value, variance = output.chunk(2, -1) if self.has_variance else (output, None)
        return Field(value, variance)


@dataclass(frozen=True)
class DiffusionHead:
    """A network's prediction of M tokens: vectors z, the condition of a head network that denoises each token.

    Attributes:
        z: (M, C) at the positions `where`, or (B, L, C).
        net: the head's network.
        process: the head's Gaussian process.
        token_width: D.
        where: (B, L) bool, the queried positions; None for all.
        has_variance: whether the head's network predicts the reverse step's variance too.
        null_z, scale: z without condition and guidance scale, a number or one per position; None without guidance.
        solver: samples the tokens. Solvers are in a higher layer: a sampler sets its own (`drawn_by`).
    """

    z: Tensor
    net: HeadNet
    process: Gaussian
    token_width: int
    where: Tensor | None = None
    has_variance: bool = True
    null_z: Tensor | None = None
    scale: Tensor | float = 1.0
    solver: TokenSolver | None = None

    def guide(self, null: DiffusionHead, scale: Tensor | float) -> DiffusionHead:
        """null + scale (self - null), on the head's field at each of its steps; scale, a number or (B,), 1 is off."""
        if isinstance(scale, Tensor):
            scale = over_positions(scale.to(self.z), self.where, self.z.shape[:-1])
        elif scale == 1:
            return self
        return replace(self, null_z=null.z, scale=scale)

    def halves(self) -> tuple[DiffusionHead, DiffusionHead]:
        """The first and the second half of the rows: undoes a pass of two joined batches with equal `where`."""
        above, below = (None, None) if self.where is None else self.where.chunk(2)
        first, second = self.z.chunk(2)
        return replace(self, z=first, where=above), replace(self, z=second, where=below)

    def drawn_by(self, solver: TokenSolver) -> DiffusionHead:
        """The same prediction with a solver."""
        return replace(self, solver=solver)

    def field(self, repeats: int = 1) -> Preconditioned:
        """The head as a `FieldDenoiser` of tokens (repeats M, 1, D), repeat by repeat; without guidance."""
        z = self.z.flatten(0, -2)
        return Preconditioned(self.process, HeadField(self.net, z.repeat(repeats, 1), self.has_variance))

    def guided(self, x_t: Tensor, t: Tensor) -> Field:
        """The field of tokens x_t (M, 1, D) at t (M,), with guidance."""
        if self.null_z is None:
            return self.field()(x_t, t)
        both = replace(self, z=torch.cat([self.z, self.null_z]), where=None)
        conditional, null = both.field()(x_t.repeat(2, 1, 1), t.repeat(2)).halves()
        scale = self.scale.flatten() if isinstance(self.scale, Tensor) else self.scale
        return conditional.guide(null, scale)

    def sample(self, rng: Rng, temperature: float = 1.0) -> Tensor:
        """Sample tokens (M, D), or (B, L, D); temperature multiplies the noise of the head's steps (MAR, section 4.2).

        Noise is drawn for all positions: the random stream of a row does not depend on the queried ones.

        Raises:
            ValueError: no solver.
        """
        if self.solver is None:
            raise ValueError("sampling a diffusion head needs a solver; set one with `drawn_by`")
        queried = self.z.new_ones(self.z.shape[:2], dtype=torch.bool) if self.where is None else self.where
        shape = (*queried.shape, self.token_width)

        def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Field:  # noqa: ARG001
            times = t.to(x_t.device)[:, None].expand(queried.shape)[queried]
            field = self.guided(x_t[queried][:, None], times)
            variance = None if field.variance is None else _spread(field.variance, queried)
            return Field(_spread(field.value, queried), variance)

        noise = rng.normal(shape, device=self.z.device)
        x_0 = self.solver(denoise, noise, rng, process=self.process, temperature=temperature)
        return x_0 if self.where is None else x_0[queried]


def _spread(values: Tensor, where: Tensor) -> Tensor:
    """(M, 1, D) at their positions of (B, L, D), zeros elsewhere."""
    whole = values.new_zeros(*where.shape, values.shape[-1])
    whole[where] = values[:, 0]
    return whole

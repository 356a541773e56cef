"""A Gaussian process's parametrisation, wrapped around a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskgen.core.predictions import Condition, Field
from maskgen.core.subset import TokenSubset
from maskgen.processes import Gaussian
from maskgen.processes.gaussian import per_row

CLEAN = 1e-3
"""A time with almost no noise in continuous processes; at 0 the logarithm of EDM's noise level is infinite."""


@dataclass(frozen=True)
class Preconditioned:
    """A `FieldDenoiser` of the process's x_t and t around a network of c_in x_t and c_noise."""

    process: Gaussian
    network: Any

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,  # noqa: ARG002 - one signature for all denoisers
    ) -> Field:
        """x_t (B, L, D), t (B,) in [0, 1], float64 where noise is large -> Field of all or of the kept tokens."""
        c = self.process.scalings(t)
        field: Field = self.network(per_row(c.c_in, x_t) * x_t, c.c_noise.float(), cond, subset=subset)
        return field

    def features(self, x_0: Tensor, **choices: object) -> Tensor:
        """Features of x_0 (B, L, D), which the network is given at the process's cleanest time, without noise.

        Args:
            x_0: clean tokens.
            choices: keyword arguments of the network's `features`.
        """
        t = torch.full((len(x_0),), 1 / self.process.steps if self.process.steps else CLEAN, device=x_0.device)
        c, (a, _) = self.process.scalings(t), self.process.amplitudes(t)
        found: Tensor = self.network.features(per_row(c.c_in * a, x_0) * x_0, c.c_noise.float(), **choices)
        return found

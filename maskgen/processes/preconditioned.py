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
"""A time at which continuous processes have hardly any noise; at 0 EDM's logarithm of it would be infinite."""


@dataclass(frozen=True)
class Preconditioned:
    """A `FieldDenoiser` in the process's own x_t and t; the network sees c_in x_t and c_noise."""

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
        answer: Field = self.network(per_row(c.c_in, x_t) * x_t, c.c_noise.float(), cond, subset=subset)
        return answer

    def features(self, x_0: Tensor, **choices: Any) -> Tensor:
        """x_0 (B, L, D) as the network sees it at the process's cleanest time, without noise -> its features.

        `choices` are those of the network's `features`.
        """
        t = torch.full((len(x_0),), 1 / self.process.steps if self.process.steps else CLEAN, device=x_0.device)
        c, (a, _) = self.process.scalings(t), self.process.amplitudes(t)
        found: Tensor = self.network.features(per_row(c.c_in * a, x_0) * x_0, c.c_noise.float(), **choices)
        return found

"""DPM-Solver++ in its singlestep form: steps of up to three evaluations of their own."""

from __future__ import annotations

import torch
from torch import Tensor

from maskgen.core.predictions import Field
from maskgen.core.rng import Rng
from maskgen.samplers.gaussian.solvers import Call, Settings, Solver, preserving


class DpmSingle(Solver):
    """Exponential integrator of the x_0 form in lambda = log(a / b) (arXiv 2211.01095; order 3: 2206.00927, app. B).

    Each step of size h starts at s and takes up to three evaluations m_0, m_1, m_2 at s, s + r_1 h and s + r_2 h. With
    phi_1 = exp(-h) - 1 and phi_2 = phi_1 / h + 1 it leads to

        x = b_t / b_s x_s - a_t phi_1 m_0 + (a_t / r_2) phi_2 (m_2 - m_0)      (order 3)
        x = b_t / b_s x_s - a_t phi_1 m_0 - a_t phi_1 / (2 r_1) (m_1 - m_0)    (order 2)

    The scheduler of `diffusers` has other inner steps of order 3, with errors up to 1.4 times as large.
    If the sampler `ends_in_noise`, alpha has N + 1 levels and x at the last one is the result, as in the authors' code;
    else the last step is of first order and ends at data.
    """

    def __init__(self, alpha: Tensor, settings: Settings) -> None:
        n = len(alpha) - settings.ends_in_noise
        levels = alpha if settings.ends_in_noise else torch.cat([alpha, alpha.new_ones(1)])
        self.a, self.b = levels.sqrt(), (1 - levels).sqrt()
        self.log_snr = self.a.log() - self.b.log()
        self.places = singlestep_orders(n, settings.order, settings.ends_in_noise)
        ends = [*(place == 1 for place in self.places[1:]), True]  # the next evaluation begins a step
        calls = [Call(level, level + 1 if is_end else None) for level, is_end in enumerate(ends)]
        if settings.ends_in_noise:
            calls[-1] = Call(n - 1, n + 1)
        super().__init__(None, preserving, calls)
        self._x = torch.zeros(0)
        self._clean: list[Tensor] = []

    def step(self, x_0: Tensor, field: Field, x: Tensor, rng: Rng) -> Tensor:  # noqa: ARG002
        now = self._done
        self._done += 1
        if self.places[now] == 1:
            self._x, self._clean = x, []
        self._clean.append(x_0)
        return self._to(now + 1, now + 1 - self.places[now])

    def _to(self, end: int, start: int) -> Tensor:
        """x at a level from that at `start` and the estimates of x_0 since."""
        a, decay = float(self.a[end]), float(self.b[end] / self.b[start])
        h = float(self.log_snr[end] - self.log_snr[start])
        phi = float(torch.expm1(torch.tensor(-h, dtype=torch.float64)))
        first, *others = self._clean
        x = decay * self._x - a * phi * first
        if not others:
            return x
        share = float(self.log_snr[end - 1] - self.log_snr[start]) / h  # of the last evaluation within this step
        slope = (others[-1] - first) / share
        is_whole = len(others) == 1 and self._is_end(end)
        return x - a * phi / 2 * slope if is_whole else x + a * (phi / h + 1) * slope

    def _is_end(self, level: int) -> bool:
        return level == len(self.places) or self.places[level] == 1


def singlestep_orders(n: int, order: int, ends_in_noise: bool) -> list[int]:
    """Place of each of n evaluations within its step, 1 ... order: steps of `order`, then the rest.

    A step that ends at data has order 1. The authors' code has orders 3, 3, 2 for 8 evaluations of order 3.
    """
    n_whole = n if ends_in_noise else n - 1
    orders = [*range(1, order + 1)] * (n_whole // order) + [*range(1, n_whole % order + 1)]
    return orders if ends_in_noise else [*orders, 1]

"""Networks small enough to know the answer of, and random numbers one can choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset

MASK = 5
"""V of `waves`, and so its mask id."""


class Given(Rng):
    """Uniform draws as given, one after the other, each spread over the shape asked for."""

    def __init__(self, *values: Tensor) -> None:
        super().__init__(0)
        self.values = list(values)

    def uniform(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        return self.values.pop(0).double().expand(tuple(shape)).to(device)


class Windowed(Rng):
    """Uniform draws given that they fall into [start, start + width): rare tokens are met often."""

    def __init__(self, start: float, width: float) -> None:
        super().__init__(0)
        self.start, self.width = start, width

    def uniform(self, shape: Sequence[int], *, device: torch.device | str = "cpu") -> Tensor:
        return self.start + self.width * super().uniform(shape, device=device)


def pick(logits: Tensor, where: Tensor | None) -> Categorical:
    """(B, L, V) -> what a denoiser answers when asked for `where`."""
    return Categorical(logits if where is None else logits[where], where)


def waves(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
    """V = 5; depends on place, time and every token of the row, and on no other row."""
    length = x_t.shape[1]
    place = torch.arange(length, dtype=torch.float64)
    row = (x_t * (place + 1)).sum(1, keepdim=True) + t[:, None]
    return pick(3 * torch.sin((row + 7 * place)[..., None] * torch.arange(1, MASK + 1)), where)


def constant(vocab_size: int) -> Callable[..., Categorical]:
    """Knows nothing: all logits 0."""

    def denoise(
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        return pick(torch.zeros(*x_t.shape, vocab_size), where)

    return denoise


def posterior(joint: Tensor) -> Callable[..., Categorical]:
    """The exact p(x_i | visible tokens) of a joint distribution (V,) * L."""
    states = torch.cartesian_prod(*[torch.arange(size) for size in joint.shape])  # (S, L)
    is_value = torch.nn.functional.one_hot(states).double()  # (S, L, V)

    def denoise(
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        agrees = ((x_t[:, None] == states) | (x_t[:, None] == joint.shape[0])).all(2)  # (B, S)
        weight = agrees * joint.flatten()
        return pick(torch.log(torch.einsum("bs,slv->blv", weight.double(), is_value)), where)

    return denoise


def state_dependent(p: Tensor, exponents: Tensor) -> Callable[..., Categorical]:
    """The exact p(x_i | masked at t) of independent tokens p (V,) where token v is masked with t^exponents[v]."""

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        logits = p.log() + exponents * t.double()[:, None].log()  # (B, V)
        return pick(logits[:, None].expand(*x_t.shape, -1), where)

    return denoise


class CountedRows:
    """A denoiser that counts in `n` (B,) how often each row was evaluated; the condition's labels number the rows."""

    def __init__(self, denoiser: Callable[..., Categorical], n_rows: int) -> None:
        self.denoiser = denoiser
        self.n = torch.zeros(n_rows, dtype=torch.long)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        subset: TokenSubset | None = None,
        where: Tensor | None = None,
    ) -> Categorical:
        assert cond is not None
        self.n[cond.labels] += 1
        return self.denoiser(x_t, t, where=where)


def frequencies(x_0: Tensor, joint: Tensor) -> Tensor:
    """(B, L) samples -> their share of each outcome, of the shape of `joint`."""
    flat = x_0 @ torch.tensor(joint.stride())
    return (torch.bincount(flat, minlength=joint.numel()) / len(x_0)).view(joint.shape)

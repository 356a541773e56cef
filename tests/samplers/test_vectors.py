"""Laws of decoding tokens that are vectors, which NaN masks."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from maskgen.core.errors import UserError
from maskgen.core.rng import Rng
from maskgen.processes import is_mask
from maskgen.samplers import SAMPLERS

N, LENGTH, WIDTH = 3, 9, 2


@dataclass(frozen=True)
class Noise:
    """Standard normal vectors."""

    where: Tensor

    def sample(self, rng: Rng, temperature: float = 1.0) -> Tensor:
        return temperature * rng.normal((*self.where.shape, WIDTH))[self.where]


def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Noise:
    assert where is not None
    assert bool(is_mask(x_t, 0)[where].all())
    return Noise(where)


def masked() -> Tensor:
    return torch.full((N, LENGTH, WIDTH), torch.nan)


VECTOR_SAMPLERS = [name for name in SAMPLERS.names() if not SAMPLERS.build(name).needs_probabilities]


@pytest.mark.parametrize("name", VECTOR_SAMPLERS)
def test_all_is_filled_and_what_is_known_stands(name: str) -> None:
    x_1 = masked()
    x_1[0, 4], x_1[2, :3] = 5.0, 6.0
    x_0 = SAMPLERS.build(name)(denoise, x_1, Rng.per_sample(range(N)), mask_id=0, grid=(3, 3))
    assert not x_0.isnan().any()
    assert torch.equal(x_0[~x_1.isnan()], x_1[~x_1.isnan()])


@pytest.mark.parametrize("name", VECTOR_SAMPLERS)
def test_a_row_is_the_same_beside_others_and_alone(name: str) -> None:
    sampler = SAMPLERS.build(name)
    together = sampler(denoise, masked(), Rng.per_sample(range(N)), mask_id=0, grid=(3, 3))
    for row in range(N):
        alone = sampler(denoise, masked()[:1], Rng.per_sample([row]), mask_id=0, grid=(3, 3))
        assert torch.equal(together[row : row + 1], alone)


def test_samplers_that_use_probabilities_are_refused() -> None:
    for name in sorted(set(SAMPLERS.names()) - set(VECTOR_SAMPLERS)):
        sampler = SAMPLERS.build(name)
        assert sampler.needs_probabilities
        with pytest.raises(UserError, match="uses token probabilities, but these tokens are continuous; use mar or"):
            sampler(denoise, masked(), Rng.per_sample(range(N)), mask_id=0, grid=(3, 3))

"""Laws of the loss of diffusion heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.objectives import TokenDiffusion
from maskgen.processes import Absorbing, Gaussian, is_mask
from maskgen.processes.diffusion_head import DiffusionHead
from maskgen.schedules import Betas, Exponential, Linear, Log

EPS = Gaussian(Betas("cosine"), target="eps", steps=1000)
X_0 = torch.randn(6, 12, 3, generator=torch.Generator().manual_seed(0))


class Network:
    """Remembers what it was asked; its head answers zeros, so the squared error is that of the noise itself."""

    training = True

    def __init__(self, has_variance: bool = False) -> None:
        self.has_variance = has_variance
        self.heads: list[int] = []

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Condition | None = None, *, where: Tensor | None = None, **_: Any
    ) -> DiffusionHead:
        assert where is not None
        self.x_t, self.t, self.cond = x_t, t, cond
        return DiffusionHead(x_t.new_zeros(int(where.sum()), 2), self.net, EPS, 3, where, self.has_variance)

    def net(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        self.heads.append(len(x))
        self.times = t
        return x.new_zeros(len(x), 3 * (1 + self.has_variance))


def test_only_masked_tokens_are_given_to_the_head_each_so_many_times() -> None:
    network, x_0 = Network(), X_0.clone()
    loss = TokenDiffusion(Absorbing(0), repeats=3)(network, Batch(x_0), Rng.stream(1))
    n_masked = int(is_mask(network.x_t, 0).sum())
    assert 0 < n_masked < 72
    assert network.heads == [3 * n_masked]
    assert loss.logs["squared_error"][1] == 3 * n_masked
    x_0[~is_mask(network.x_t, 0)] = 1e9
    again = TokenDiffusion(Absorbing(0), repeats=3)(Network(), Batch(x_0), Rng.stream(1))
    assert torch.equal(again.value, loss.value), "a visible token does not reach the loss, not even times zero"


def test_the_loss_of_an_answer_of_zeros_is_the_variance_of_noise() -> None:
    x_0 = torch.zeros(64, 64, 3)
    loss = TokenDiffusion(Absorbing(0))(Network(), Batch(x_0), Rng.stream(0))
    assert loss.value.item() == pytest.approx(1.0, abs=0.02)


def test_the_heads_times_are_all_steps_alike_and_independent() -> None:
    network = Network()
    TokenDiffusion(Absorbing(0))(network, Batch(torch.zeros(64, 64, 3)), Rng.stream(0))
    assert (network.times == network.times.round()).all()
    assert (network.times.min().item(), network.times.max().item()) == (0, 999)
    first, second, *_ = network.times.unflatten(0, (4, -1))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.05
    assert network.times.mean().item() == pytest.approx(499.5, abs=8)


def test_a_rows_noise_does_not_depend_on_who_computes_the_others() -> None:
    x_0 = torch.zeros(32, 12, 3)

    def errors(first: int, count: int) -> Tensor:
        network = Network()
        rng = Rng.rows(0, first=first, count=count, total=32)
        TokenDiffusion(Absorbing(0))(network, Batch(x_0[:count]), rng)
        return network.times.unflatten(0, (4, -1))

    whole, part = errors(0, 32), errors(16, 16)
    assert torch.equal(whole[:, -part.shape[1] :], part)


def test_the_bound_of_the_variance_is_added() -> None:
    plain, both = (TokenDiffusion(Absorbing(0))(Network(kind), Batch(X_0), Rng.stream(1)) for kind in (False, True))
    bound = both.logs["variational_bound"]
    assert (both.value - plain.value).item() == pytest.approx((bound[0] / bound[1]).item(), rel=1e-4)


def test_weight_elbo_counts_every_token_and_multiplies_by_the_bounds_weight() -> None:
    network, process = Network(), Absorbing(0, Linear(), "bernoulli")
    loss = TokenDiffusion(process, weight="elbo", t_min=0.5)(network, Batch(torch.zeros(64, 64, 3)), Rng.stream(0))
    where = is_mask(network.x_t, 0)
    expected = (where / network.t[:, None]).sum() / where.numel()  # errors of zeros are 1
    assert loss.value.item() == pytest.approx(expected.item(), rel=0.02)


def test_times_below_the_least_are_taken_for_it() -> None:
    network = Network()
    TokenDiffusion(Absorbing(0, Exponential()), t_min=0.2)(network, Batch(torch.zeros(64, 256, 3)), Rng.stream(0))
    assert network.t.min().item() == pytest.approx(0.2)
    ratio = is_mask(network.x_t, 0).float().mean(1)
    assert ratio.min().item() == pytest.approx(0.6335891374778405, abs=3e-3)  # golden/image_continuous.json


def test_one_ratio_a_batch_leaves_rows_equally_long() -> None:
    network = Network()
    for seed in range(8):
        TokenDiffusion(Absorbing(0), ratio_per="batch")(network, Batch(X_0), Rng.stream(seed))
        assert len(is_mask(network.x_t, 0).sum(1).unique()) == 1
        assert len(network.t.unique()) == 1
        places = is_mask(network.x_t, 0)
        assert len(places.unique(dim=0)) > 1 or places.all(), "other places in each row"


def test_validation_drops_no_labels() -> None:
    network, labels = Network(), torch.arange(6)
    network.training = False
    TokenDiffusion(Absorbing(0), label_dropout=0.9)(network, Batch(X_0, Condition(labels)), Rng.stream(0))
    assert network.cond is not None
    assert torch.equal(network.cond.labels, labels)


@pytest.mark.parametrize(
    ("process", "arguments", "words"),
    [
        (Absorbing(5), {}, "continuous tokens"),
        (Gaussian(), {}, "absorbing"),
        (Absorbing(0), {"weight": "elbo"}, "count bernoulli"),
        (Absorbing(0, Log(), "bernoulli", at_least=2), {"weight": "elbo"}, "at_least 0"),
        (Absorbing(0), {"t_min": 1.0}, "t_min"),
        (Absorbing(0), {"label_dropout": 1.0}, "label_dropout"),
        (Absorbing(0), {"repeats": 0}, "repeats"),
    ],
)
def test_what_does_not_fit_is_refused(process: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TokenDiffusion(process, **arguments)

"""Laws of the learned rates: values and gradients without chance, on one token whose law is known."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.predictions import Batch, Categorical
from maskgen.core.rng import Rng
from maskgen.models.mdlm import MDLM
from maskgen.objectives import StateDependentTokens
from maskgen.objectives.state_dependent import integrand, log_mask_probability, reconstruction
from maskgen.processes import Absorbing, StateDependent
from tests.enumeration import nodes
from tests.toys import Given, pick, state_dependent

TOY: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())["genmd4"]
Q, W, V = torch.tensor(TOY["q"]).double(), torch.tensor(TOY["w"]).double(), 3


def diffusion(w: Tensor, t_min: float) -> Tensor:
    """The bound between t_min and 1 with mu = Q at all times, worked out by hand: int t^(w - 1) dt is elementary."""
    return (Q * (1 - t_min**w) * ((w * Q).sum() / w - 1 - Q.log())).sum()


def rest(w: Tensor, t_min: float, guess: Tensor | float = 1.0) -> Tensor:
    """What is left at t_min: a mask there is guessed to be v with a chance in proportion to guess_v t_min^w_v."""
    chance = t_min**w
    return -(Q * chance * (guess * chance / (guess * chance).sum()).log()).sum()


def gradient_of(law: Callable[[Tensor, float], Tensor], t_min: float) -> tuple[float, list[float]]:
    w = W.clone().requires_grad_()
    value = law(w, t_min)
    return value.item(), torch.autograd.grad(value, w)[0].tolist()


class Rates(nn.Module):
    """mu = Q at all times, with rates that learn."""

    def __init__(self, denoise: Callable[..., Categorical] | None = None) -> None:
        super().__init__()
        self.exponents = nn.Parameter(W.float())
        self.denoise = denoise

    def forward(self, x_t: Tensor, t: Tensor, *, where: Tensor) -> Categorical:
        if self.denoise is not None:
            return self.denoise(x_t, t, where=where)
        return pick(Q.log().expand(*x_t.shape, -1), where)


def draws(t_min: float, n: int = 40) -> Iterator[tuple[float, Tensor, Rng]]:
    """(chance, x_0 (1, 1), rng) of every token, time and two masks at that time."""
    levels, weights = nodes(n)
    for x, (level, weight) in itertools.product(range(V), zip(levels, weights, strict=True)):
        masked = float((t_min + (1 - t_min) * level) ** W[x])
        for first, second in itertools.product([True, False], repeat=2):
            chance = math.prod(masked if m else 1 - masked for m in (first, second))
            noise = (torch.tensor(0.0 if m else 1.0) for m in (first, second))
            yield float(Q[x] * weight) * chance, torch.tensor([[x]]), Given(torch.tensor(0.5), 1 - level, *noise)


def expected(model: Rates, t_min: float) -> tuple[float, list[float]]:
    """The bound, and the gradient of the objective by the rates."""
    objective = StateDependentTokens(StateDependent(V, t_min))
    value, bound = torch.zeros(()), 0.0
    for chance, x_0, rng in draws(t_min):
        loss = objective(model, Batch(x_0), rng)
        value = value + chance * loss.value
        bound += chance * float(loss.logs["loss"][0])
    return bound, torch.autograd.grad(value, model.exponents)[0].tolist()


def test_the_law_worked_out_by_hand_is_the_published_one() -> None:
    value, gradient = gradient_of(diffusion, 0.0)
    assert value == pytest.approx(TOY["loss_fixed_mu"], abs=1e-6)
    assert gradient == pytest.approx(TOY["grad_fixed_mu"], abs=1e-6)
    value, gradient = gradient_of(diffusion, TOY["t1"])
    published = (1 - TOY["eps"]) / (1 - TOY["t1"])  # a mean over times above t1, and tokens that are never masked
    assert value * published == pytest.approx(TOY["loss_trunc"], abs=1e-6)
    assert [part * published for part in gradient] == pytest.approx(TOY["grad_trunc"], abs=1e-4)


@pytest.mark.parametrize("t_min", [1e-3, 0.1])
def test_value_and_gradient_of_the_rates_are_those_worked_out_by_hand(t_min: float) -> None:
    bound, gradient = expected(Rates(), t_min)
    wanted, its_gradient = gradient_of(lambda w, t: diffusion(w, t) + rest(w, t), t_min)
    assert bound == pytest.approx(wanted, abs=1e-4)
    assert gradient == pytest.approx(its_gradient, abs=1e-3)


@pytest.mark.parametrize("t_min", [1e-3, 0.1])
def test_the_exact_posterior_costs_the_entropy_but_for_the_guess_at_the_end(t_min: float) -> None:
    bound, gradient = expected(Rates(state_dependent(Q, W)), t_min)
    # Guessed by the posterior too, all would be the entropy at any rates; by the rates alone it is a little more.
    excess, its_gradient = gradient_of(lambda w, t: rest(w, t) - rest(w, t, Q), t_min)
    assert excess > 0
    assert bound == pytest.approx(TOY["H"] + excess, abs=1e-4)
    assert gradient == pytest.approx(its_gradient, abs=1e-3)


def test_what_is_left_at_the_end_is_the_guess_by_the_rates_alone() -> None:
    left = (Q * reconstruction(W[:, None], W, 1e-3)).sum()
    assert left.item() == pytest.approx(rest(W, 1e-3).item(), rel=1e-9)
    assert rest(W, 1e-3, Q).item() == pytest.approx(0.001495, abs=1e-6)  # with the exact posterior, as published


def test_equal_rates_of_one_leave_the_weighted_cross_entropy() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target, t = torch.tensor([0, 1, 2, 3, 0, 1]), torch.linspace(0.1, 1, 6).double()
    costs = integrand(logits, target, torch.ones(4).double(), t)
    torch.testing.assert_close(costs, nn.functional.cross_entropy(logits, target, reduction="none") / t)


def test_the_integrand_is_never_negative_at_any_rates() -> None:
    # mu = x would need w_x of itself and costs nothing: w (mu - 1 - log mu) is convex with its least value 0 there.
    logits = 5 * torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    target = torch.arange(1000) % 4
    w = torch.tensor([0.2, 1.0, 3.0, 0.7])
    assert bool((integrand(logits, target, w, torch.ones(1000)) > -1e-5).all())
    sure = 100.0 * nn.functional.one_hot(target, 4)
    torch.testing.assert_close(integrand(sure, target, w, torch.ones(1000)), torch.zeros(1000))


def test_chances_of_all_masks_are_one_and_certain_ones_have_a_finite_gradient() -> None:
    own = W.clone().requires_grad_()
    masks = torch.tensor(list(itertools.product([True, False], repeat=V)))
    log_chances = log_mask_probability(masks, own.expand(len(masks), -1), torch.full((len(masks),), 0.3).double())
    assert log_chances.exp().sum().item() == pytest.approx(1)
    for mask in masks:  # a time next to 1 may be 1 in float32, and a token visible even so
        own.grad = None
        at_the_end = log_mask_probability(mask[None], own[None], torch.ones(1).double()).sum()
        at_the_end.backward()
        assert bool(at_the_end.isfinite())
        assert bool(own.grad is not None and own.grad.isfinite().all())


def network(has_exponents: bool = True) -> MDLM:
    torch.manual_seed(0)
    made = MDLM(V, width=8, depth=1, heads=2, has_exponents=has_exponents)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


X_0 = (Rng.stream("text").uniform((16, 9)) * V).long()


def test_a_network_learns_with_all_its_parameters() -> None:
    model = network()
    loss = StateDependentTokens(StateDependent(V))(model, Batch(X_0), Rng.stream(0))
    loss.value.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())] == []
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    assert all(not log.requires_grad for log in loss.logs.values())


def test_a_wrapped_network_is_asked_for_its_own_rates() -> None:
    model, objective = network(), StateDependentTokens(StateDependent(V))

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = model

        def forward(self, *args: Any, **more: Any) -> Categorical:
            predicted: Categorical = self.module(*args, **more)
            return predicted

    plain, wrapped = (objective(m, Batch(X_0), Rng.stream(0)).value for m in (model, Wrapped()))
    assert torch.equal(plain, wrapped)


def test_a_new_network_costs_the_logarithm_of_its_vocabulary() -> None:
    model = MDLM(V, width=8, depth=1, heads=2, has_exponents=True)
    objective, x_0 = StateDependentTokens(StateDependent(V)), X_0.repeat(16, 1)
    values = torch.stack([objective(model, Batch(x_0), Rng.stream(k)).logs["loss"][0] for k in range(30)])
    assert abs(float(values.mean()) - math.log(V)) < 4 * float(values.std()) / math.sqrt(30)
    assert objective.baseline == pytest.approx(math.log(V))


def test_rates_need_a_process_and_a_network_that_have_them() -> None:
    with pytest.raises(ValueError, match="objective state_dependent needs process state_dependent"):
        StateDependentTokens(Absorbing(V))
    with pytest.raises(ValueError, match=r"needs a model with rates: model.has_exponents: true"):
        StateDependentTokens(StateDependent(V))(network(False), Batch(X_0), Rng.stream(0))
    with pytest.raises(
        ValueError, match=r"only objectives denoising and masked_tokens drop .* use keep_ratio 1, got 0.5"
    ):
        StateDependentTokens(StateDependent(V))(SimpleNamespace(), Batch(X_0), Rng.stream(0), keep_ratio=0.5)

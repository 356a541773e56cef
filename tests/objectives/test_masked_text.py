"""Laws of masked tokens as a bound on the likelihood of text."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Batch, Categorical
from maskgen.core.rng import Rng
from maskgen.models.mdlm import MDLM
from maskgen.objectives import MaskedTokens
from maskgen.processes import Absorbing, StateDependent
from maskgen.schedules import Linear, Schedule
from tests.enumeration import SCHEDULES, nodes
from tests.toys import Given, posterior

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
TOY = torch.zeros(3, 3)
for outcome, chance in GOLDEN["toy_nelbo"]["joint"].items():
    TOY["abc".index(outcome[0]), "abc".index(outcome[1])] = chance
ENTROPY = GOLDEN["toy_nelbo"]["H_nats"]
V, L = 27, 32


def bound(schedule: Schedule, steps: int = 0, **more: Any) -> MaskedTokens:
    return MaskedTokens(Absorbing(len(TOY), schedule, "bernoulli"), "elbo", steps, **more)


def expected(objective: MaskedTokens, times: Tensor, weights: Tensor) -> float:
    """Nats of a text of the toy: the objective's value over all texts, all sets of masks and the times given."""
    model, total = posterior(TOY), 0.0
    ratios = objective.process.schedule.mask_ratio(times)
    for place in TOY.nonzero():
        for masked in itertools.product([True, False], repeat=len(place)):
            noise = torch.where(torch.tensor(masked), 0.0, 1.0)
            for t, ratio, weight in zip(times, ratios, weights, strict=True):
                rng = Given(torch.tensor(0.5), 1 - t, noise)
                chance = math.prod(float(ratio if is_masked else 1 - ratio) for is_masked in masked)
                if chance > 0:
                    value = objective(model, Batch(place[None]), rng).value
                    total += float(TOY[tuple(place)] * weight * chance * value) * len(place)
    return total


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_exact_denoiser_costs_the_entropy_whatever_the_schedule(schedule: Schedule) -> None:
    assert expected(bound(schedule), *nodes(24)) == pytest.approx(ENTROPY, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_steps_cost_more_as_published_and_less_the_more_there_are(steps: int) -> None:
    grid = torch.arange(1, steps + 1).double() / steps
    cost = expected(bound(Linear(), steps), grid, torch.full_like(grid, 1 / steps))
    assert cost == pytest.approx(GOLDEN["toy_nelbo"]["discrete_T"][str(steps)], abs=2e-6)
    assert cost == pytest.approx(ENTROPY * (1 + 1 / steps), abs=1e-5)


class Watch:
    """Knows nothing, and remembers what it was asked."""

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any, where: Tensor, **more: Any) -> Any:
        self.t, self.more = t, more
        return Categorical(torch.zeros(int(where.sum()), len(TOY)), where)


def test_times_of_steps_are_on_their_grid_and_each_is_met() -> None:
    watch = Watch()
    bound(Linear(), 5)(watch, Batch(torch.zeros(200, 4, dtype=torch.long)), Rng.stream(0))
    numbers, counts = torch.unique(watch.t * 5, return_counts=True)
    torch.testing.assert_close(numbers, torch.arange(1.0, 6))
    assert counts.tolist() == [40] * 5


@pytest.mark.parametrize(("steps", "weight"), [(5, "uniform"), (-1, "elbo")])
def test_steps_are_of_the_bound_and_not_negative(steps: int, weight: Any) -> None:
    with pytest.raises(ValueError, match=f"steps must be at least 0 and needs weight elbo .*, got {steps}"):
        MaskedTokens(Absorbing(3, Linear(), "bernoulli"), weight, steps)


def test_a_process_with_rates_has_an_objective_of_its_own() -> None:
    with pytest.raises(ValueError, match="needs process absorbing; state_dependent has an objective of that name"):
        MaskedTokens(StateDependent(3))


def test_the_network_is_told_of_documents_only_where_there_are_some() -> None:
    watch, x_0 = Watch(), torch.zeros(4, 6, dtype=torch.long)
    bound(Linear())(watch, Batch(x_0), Rng.stream(0))
    assert watch.more == {}
    documents = torch.arange(6).expand(4, 6) // 3
    bound(Linear())(watch, Batch(x_0, documents=documents), Rng.stream(0))
    assert list(watch.more) == ["documents"]
    assert watch.more["documents"] is documents


# With the network


def network(**changes: Any) -> MDLM:
    """A network in which every path is open."""
    torch.manual_seed(0)
    made = MDLM(V, width=8, depth=2, heads=2, **changes)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def text(n: int, length: int = L) -> Tensor:
    return (Rng.stream("text").uniform((n, length)) * V).long()


@pytest.mark.parametrize("cond_width", [0, 6])
def test_a_new_network_costs_the_logarithm_of_its_vocabulary(cond_width: int) -> None:
    model = MDLM(V, width=8, depth=1, heads=2, cond_width=cond_width)
    uniform = MaskedTokens(Absorbing(V))(model, Batch(text(4)), Rng.stream(0))
    assert uniform.value.item() == pytest.approx(math.log(V), rel=1e-6)
    elbo = MaskedTokens(Absorbing(V, Linear(), "bernoulli"), "elbo")
    values = torch.stack([elbo(model, Batch(text(256)), Rng.stream(k)).value.detach() for k in range(20)])
    assert abs(float(values.mean()) - math.log(V)) < 4 * float(values.std()) / math.sqrt(20)
    assert float(values.mean()) == pytest.approx(math.log(V), rel=0.05)


def test_dropped_tokens_neither_cost_nor_count_nor_are_seen() -> None:
    objective, model, x_0 = MaskedTokens(Absorbing(V, Linear(), "bernoulli"), "elbo"), network(), text(6)
    seen: list[Any] = []

    def watched(x_t: Tensor, t: Tensor, cond: Any, *, subset: Any, where: Tensor) -> Categorical:
        seen.append((x_t, t, subset, where))
        return model(x_t, t, cond, subset=subset, where=where)

    loss = objective(watched, Batch(x_0), Rng.stream(0), keep_ratio=0.5)
    x_t, t, subset, where = seen[0]
    total = 0.0
    for row, keep in enumerate(subset.keep):
        hidden = model.hidden(x_t[row : row + 1, keep], t[row : row + 1], positions=keep)
        log_probs = model.logits(hidden, t[row : row + 1], None).log_probs()[0].detach()
        cost = -log_probs[torch.arange(len(keep)), x_0[row, keep]]
        total += float((cost * where[row, keep]).sum() / t[row])
    assert subset.keep.shape == (6, L // 2)
    assert loss.value.item() == pytest.approx(total / (6 * L // 2), rel=1e-4)


def test_what_another_document_says_does_not_touch_the_loss_of_a_document() -> None:
    objective, model, x_0 = MaskedTokens(Absorbing(V, Linear(), "bernoulli"), "elbo"), network(), text(1)
    documents = (torch.arange(L) >= 20).long()[None]

    def first_logits(x_0: Tensor, documents: Tensor | None) -> Tensor:
        rows: list[Tensor] = []

        def watched(x_t: Tensor, t: Tensor, cond: Any, *, where: Tensor, **more: Any) -> Categorical:
            answer = model(x_t, t, cond, where=where, **more)
            rows.append(answer.logits[where[0].nonzero()[:, 0] < 20])
            return answer

        objective(watched, Batch(x_0, documents=documents), Rng.stream(5))
        return rows[0]

    changed = torch.where(documents == 1, (x_0 + 1) % V, x_0)
    assert torch.equal(first_logits(x_0, documents), first_logits(changed, documents))
    assert not torch.equal(first_logits(x_0, None), first_logits(changed, None))

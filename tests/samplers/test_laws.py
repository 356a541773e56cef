"""The law of what is sampled, and what it costs, on toys whose answer is known."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from itertools import product
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.joint import Joint
from maskgen.samplers.masked.order import Confidence, Random
from maskgen.samplers.masked.remask import Held
from maskgen.samplers.masked.unmasking import Bernoulli, One
from maskgen.schedules import Linear, Schedule
from tests.toys import MASK, CountedRows, Windowed, frequencies, pick, posterior, waves

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
TOY = torch.tensor([[0.0, 0.5, 0.0], [0.25, 0.0, 0.0], [0.0, 0.0, 0.25]], dtype=torch.float64)
"""p(ab) = 1/2, p(ba) = 1/4, p(cc) = 1/4: to draw both tokens from their marginals is almost always wrong."""
N, HIDDEN = 20_000, 3

Entry = tuple[int, float]
"""A token and its probability when it was revealed; (HIDDEN, 0.0) where it is masked."""
Sigmas = Callable[[float, list[float], bool], tuple[list[float], float]]
"""(largest sigma, confidence of the revealed, is alpha held) -> sigma of each, sigma of the masked."""

REMASK: dict[str, Sigmas] = {
    "none": lambda largest, c, held: ([0.0] * len(c), 0.0),
    "cap": lambda largest, c, held: ([min(0.3, largest)] * len(c), min(0.3, largest)),
    "rescale": lambda largest, c, held: ([0.4 * largest] * len(c), 0.4 * largest),
    "conf": lambda largest, c, held: ([largest * exp(-own) / sum(exp(-x) for x in c) for own in c], 0.0),
    "loop": lambda largest, c, held: ([min(0.3, largest) * held] * len(c), min(0.3, largest) * held),
}
PRESETS: dict[str, tuple[dict[str, Any], str, Schedule]] = {
    "two stages": ({"type": "ancestral"}, "none", Linear()),
    "one stage": ({"type": "ancestral", "stages": 1}, "none", Linear()),
    "remdm_cap": ({"type": "remdm_cap", "eta": 0.3}, "cap", Linear()),
    "remdm_rescale": ({"type": "remdm_rescale", "eta": 0.4}, "rescale", Linear()),
    "remdm_conf": ({"type": "remdm_conf"}, "conf", Linear()),
    "remdm_loop": ({"type": "remdm_loop", "eta": 0.3}, "loop", Held()),
}


PUBLISHED: dict[str, tuple[Schedule, Sigmas]] = {
    "ancestral": (Linear(), REMASK["none"]),
    "remdm_cap": (Linear(), lambda largest, c, held: ([min(0.008, largest)] * len(c), min(0.008, largest))),
    "remdm_rescale": (Linear(), lambda largest, c, held: ([0.015 * largest] * len(c), 0.015 * largest)),
    "remdm_conf": (Linear(), REMASK["conf"]),
    "remdm_loop": (Held(), lambda largest, c, held: ([min(0.02, largest) * held] * len(c), min(0.02, largest) * held)),
}


def conditional(tokens: tuple[int, ...], place: int) -> list[float]:
    """p(token at `place` | the other one) of the toy."""
    other = tokens[1 - place]
    joint = TOY if place == 0 else TOY.T
    column = joint.sum(1) if other == HIDDEN else joint[:, other]
    p: list[float] = (column / column.sum()).tolist()
    return p


def moves(
    state: tuple[Entry, ...], alphas: tuple[float, float], is_last: bool, sigmas: Sigmas
) -> list[dict[Entry, float]]:
    """Of each place, where one step takes it and how probably (ReMDM, eq. 5), the network being exact."""
    alpha_t, alpha_s = alphas
    largest = min(1.0, (1 - alpha_s) / alpha_t) if alpha_t else 1.0
    tokens = tuple(token for token, _ in state)
    own, masked = sigmas(largest, [c for token, c in state if token != HIDDEN], abs(alpha_s - alpha_t) < 1e-9)
    chance = 1.0 if is_last else (alpha_s - (1 - masked) * alpha_t) / (1 - alpha_t)
    found, sigma = [], iter(own)
    for place, entry in enumerate(state):
        if entry[0] == HIDDEN:
            drawn = {(v, p): chance * p for v, p in enumerate(conditional(tokens, place)) if p}
            found.append(drawn | {(HIDDEN, 0.0): 1 - chance})
        else:
            again = 0.0 if is_last else next(sigma)
            found.append({entry: 1 - again, (HIDDEN, 0.0): again})
    return found


def enumerated(schedule: Schedule, steps: int, sigmas: Sigmas) -> Tensor:
    """The exact law (V, V) of `steps` steps: every path with its probability."""
    law: dict[tuple[Entry, ...], float] = {((HIDDEN, 0.0),) * 2: 1.0}
    alpha = schedule.alpha(1 - torch.arange(steps + 1, dtype=torch.float64) / steps).tolist()
    for step in range(steps):
        after: dict[tuple[Entry, ...], float] = defaultdict(float)
        for state, weight in law.items():
            places = moves(state, (alpha[step], alpha[step + 1]), step == steps - 1, sigmas)
            for (one, p), (two, q) in product(*(place.items() for place in places)):
                if p * q > 0:
                    after[one, two] += weight * p * q
        law = after
    result = torch.zeros_like(TOY)
    for ((one, _), (two, _)), weight in law.items():
        result[one, two] += weight
    return result


def draw(sampler: MaskedSampler, seed: int = 0) -> Tensor:
    denoise = Guidance().bind(posterior(TOY), None)
    return frequencies(sampler(denoise, torch.full((N, 2), HIDDEN), Rng.stream(seed), mask_id=HIDDEN), TOY)


def assert_agree(observed: Tensor, expected: Tensor) -> None:
    """Within three standard errors everywhere."""
    error = (expected.clamp(0, 1) * (1 - expected).clamp(0, 1) / N).sqrt()
    assert ((observed - expected).abs() <= 3 * error + 1e-12).all(), (observed - expected) / error


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("name", PRESETS)
def test_the_law_of_few_steps_is_that_of_all_paths_enumerated(name: str, steps: int) -> None:
    spec, remask, schedule = PRESETS[name]
    expected = enumerated(schedule, steps, REMASK[remask])
    assert expected.sum().item() == pytest.approx(1)
    assert (expected - TOY).abs().max() > 0.01
    assert_agree(draw(SAMPLERS.build(spec | {"steps": steps})), expected)


def test_ancestral_errs_by_one_part_in_t() -> None:
    independent = TOY.sum(1, keepdim=True) * TOY.sum(0, keepdim=True)
    for steps in (1, 2, 4, 64):
        together = 1 / steps  # the chance that both tokens fall into the same step
        expected = (1 - together) * TOY + together * independent
        assert torch.allclose(enumerated(Linear(), steps, REMASK["none"]), expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_with_published_settings_the_law_nears_that_of_the_data_as_steps_grow(name: str) -> None:
    schedule, sigmas = PUBLISHED[name]
    errors = [(enumerated(schedule, steps, sigmas) - TOY).abs().max().item() for steps in (16, 64, 256)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.013


@pytest.mark.parametrize("name", PUBLISHED)
def test_with_published_settings_the_law_of_many_steps_is_that_of_all_paths(name: str) -> None:
    expected = enumerated(PUBLISHED[name][0], 32, PUBLISHED[name][1])
    assert_agree(draw(SAMPLERS.build({"type": name, "steps": 32})), expected)


@pytest.mark.parametrize("spec", ["first_hitting", "autoregressive"])
def test_one_token_at_a_time_is_exact(spec: str) -> None:
    assert_agree(draw(SAMPLERS.build(spec)), TOY)


def test_remdm_loop_has_its_share_of_masks_after_every_step() -> None:
    first = TOY.sum(0)
    masked: list[float] = []
    SAMPLERS.build({"type": "remdm_loop", "steps": 20, "eta": 0.1})(
        posterior(first[:, None] * first),
        torch.full((N, 2), HIDDEN),
        Rng.stream(0),
        mask_id=HIDDEN,
        on_step=lambda _done, _total, x_s: masked.append((x_s == HIDDEN).double().mean().item()),
    )
    expected = Held().mask_ratio(1 - torch.arange(1, 21, dtype=torch.float64) / 20)
    error = (expected * (1 - expected) / (2 * N)).sqrt()
    assert ((torch.tensor(masked) - expected).abs() <= 3 * error).all()


def test_remdm_conf_masks_again_by_the_probability_a_token_had() -> None:
    sure, unsure = [30.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]  # probabilities 1 and 1/4
    seen: list[Tensor] = []
    SAMPLERS.build({"type": "remdm_conf", "steps": 10})(
        lambda x_t, t, *, where=None: pick(torch.tensor([sure, unsure]).expand(N, 2, 4), where),
        torch.full((N, 2), 4),
        Rng.stream(0),
        mask_id=4,
        on_step=lambda _done, _total, x_s: seen.append(x_s),
    )
    both = (seen[6] != 4).all(1)  # t = 0.3 -> s = 0.2: at most 2/7
    share = (seen[7][both] == 4).double().mean(0)
    expected = 2 / 7 * torch.softmax(torch.tensor([-1.0, -0.25], dtype=torch.float64), 0)
    assert ((share - expected).abs() <= 3 * (expected * (1 - expected) / both.sum()).sqrt()).all()
    assert share[1] > 1.5 * share[0]


def evaluations(sampler: MaskedSampler, x_1: Tensor) -> Tensor:
    """(B,) how often the network ran on each row."""
    network = CountedRows(waves, len(x_1))
    sampler(Guidance().bind(network, Condition(torch.arange(len(x_1)))), x_1, Rng.stream(0), mask_id=MASK)
    return network.n


@pytest.mark.parametrize(("length", "steps"), [(32, 8), (8, 32), (3, 100)])
def test_ancestral_sampling_runs_the_network_only_when_something_appears(length: int, steps: int) -> None:
    expected = steps * (1 - (1 - 1 / steps) ** length)
    if f"{length}/{steps}" in GOLDEN["e_nfe"]:
        assert expected == pytest.approx(GOLDEN["e_nfe"][f"{length}/{steps}"])
    n = evaluations(MaskedSampler(Random(), Bernoulli(), steps=steps), torch.full((1500, length), MASK)).double()
    assert abs(n.mean() - expected) <= 3 * n.std() / len(n) ** 0.5


@pytest.mark.parametrize("order", [Random(), Confidence()])
def test_first_hitting_runs_the_network_on_a_row_once_a_hole(order: Any) -> None:
    n_holes = torch.tensor([0, 1, 5, 12, 3])
    x_1 = torch.where(torch.arange(12) < n_holes[:, None], MASK, 0)
    assert torch.equal(evaluations(MaskedSampler(order, One()), x_1), n_holes)


@pytest.mark.parametrize(("name", "p", "unmasking"), [("two stages", 1e-8, Bernoulli()), ("one stage", 2e-8, Joint())])
def test_a_token_of_chance_1e_8_is_drawn_as_often_as_it_should_be(name: str, p: float, unmasking: Any) -> None:
    """Float32 Gumbel noise draws it 65 times too rarely (arXiv 2409.02908): `gumbel_fp32`, chance 1e-8 a step.

    Of 1e11 uniforms those near the token's are drawn, so many as fall there; none else can draw it.
    """
    trials, width, chance = 1e11, 1e-7, 1e-8
    n = int(torch.binomial(torch.tensor(trials).double(), torch.tensor(width).double(), generator=seeded(0)))
    logits = torch.tensor([0.25, p, 0.75 - p], dtype=torch.float64).log()
    stretch = 1.0 if isinstance(unmasking, Bernoulli) else 0.5  # the joint draw of the first of two steps halves all
    start = stretch * (0.25 + p / 2) - width / 2
    seen: list[Tensor] = []
    MaskedSampler(Random(), unmasking, steps=1 if isinstance(unmasking, Bernoulli) else 2)(
        lambda x_t, t, *, where=None: pick(logits.expand(1, n, 3), where),
        torch.full((1, n), 3),
        Windowed(start, width),
        mask_id=3,
        on_step=lambda _done, _total, x_s: seen.append(x_s),
    )
    hits, expected = int((seen[0] == 1).sum()), trials * chance
    assert abs(hits - expected) <= 3 * expected**0.5
    assert hits - expected * GOLDEN["gumbel_fp32"]["suppression"]["1e-8"] > 5 * expected**0.5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("name", "chance"), [("1e-7", 1e-7), ("2^-24", 2.0**-24), ("2e-8", 2e-8), ("1e-8", 1e-8)])
def test_float32_gumbel_noise_would_lose_the_tail(name: str, chance: float) -> None:
    """Its exponentials are multiples k of 2^-24: a token of `chance` wins where all others, exp(-k) in sum, lose."""
    r = 2.0**-24 / chance
    k = torch.arange(1, 4000, dtype=torch.float64)
    wins = 2.0**-24 * torch.exp(-k * r).sum().item()  # each k has chance 2^-24; the others are later than k r
    assert wins / chance == pytest.approx(GOLDEN["gumbel_fp32"]["suppression"][name], rel=1e-3)


def test_first_hitting_tells_the_network_the_time_of_the_hit() -> None:
    told: list[Tensor] = []

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor | None = None) -> Categorical:
        told.append(t)
        return pick(torch.zeros(*x_t.shape, 3), where)

    n = 4000
    SAMPLERS.build("first_hitting")(denoise, torch.full((n, 4), 3), Rng.stream("hits"), mask_id=3)
    mean, error = torch.stack(told).mean(1), torch.stack(told).std(1) / n**0.5
    assert ((mean - torch.tensor(GOLDEN["first_hitting_L4"])).abs() < 4 * error).all()

"""Laws of the likelihood estimates: a model that knows the answer must be told exactly its entropy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.traits import NetworkTraits
from maskgen.evaluation.metrics.bounds import count_bound, exact_nll, state_dependent_bound, time_bound
from maskgen.evaluation.metrics.likelihood import Likelihood, corpus_likelihood, row_nll
from maskgen.models.blockwise import Autoregressive, BlockDiffusion
from maskgen.models.mdlm import MDLM
from maskgen.schedules import Cosine, CosineAlpha, Fixed, Linear, Polynomial, Schedule
from tests.enumeration import SCHEDULES, every_order, every_time, nodes, within
from tests.toys import Given, constant, pick, posterior

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
ENTROPY: float = GOLDEN["toy_nelbo"]["H_nats"]


def letters() -> Tensor:
    """p(ab) = 1/2, p(ba) = 1/4, p(cc) = 1/4."""
    joint = torch.zeros(3, 3, dtype=torch.float64)
    joint[0, 1], joint[1, 0], joint[2, 2] = 0.5, 0.25, 0.25
    return joint


def any_joint(vocab_size: int, length: int) -> Tensor:
    return torch.softmax(Rng.stream("joint").normal((vocab_size**length,)).double(), 0).view((vocab_size,) * length)


class Exact:
    """The posterior of a joint distribution as a denoiser; with blocks, of the clean blocks before and its own."""

    def __init__(self, joint: Tensor, block_length: int | None = None) -> None:
        self.denoise, self.mask_id = posterior(joint), joint.shape[0]
        self.block_length, self.traits = block_length or 0, NetworkTraits(block_length=block_length)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor,
        cond: Condition | None = None,
        *,
        where: Tensor | None = None,
        clean: Tensor | None = None,
    ) -> Categorical:
        if clean is None:
            return self.denoise(x_t, t, where=where)
        logits = []
        for start in range(0, x_t.shape[1], self.block_length):
            seen = torch.full_like(x_t, self.mask_id)
            seen[:, :start] = clean[:, :start]
            seen[:, start : start + self.block_length] = x_t[:, start : start + self.block_length]
            logits.append(self.denoise(seen, t).logits[:, start : start + self.block_length])
        return pick(torch.cat(logits, 1), where)


def states(joint: Tensor) -> tuple[Tensor, Tensor]:
    """All sequences that occur (S, L), and their probabilities (S,)."""
    every = torch.cartesian_prod(*[torch.arange(size) for size in joint.shape])
    occurs = joint.flatten() > 0
    return every[occurs], joint.flatten()[occurs]


def expected_bound(schedule: Schedule, steps: int | None = None) -> float:
    """`time_bound` of the letters' exact denoiser, over all that can happen."""
    model = Exact(letters())
    return sum(
        float(chance) * every_time(model, x, schedule, 3, steps) for x, chance in zip(*states(letters()), strict=True)
    )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_bound_of_the_exact_denoiser_is_the_entropy_for_every_schedule(schedule: Schedule) -> None:
    assert expected_bound(schedule) == pytest.approx(ENTROPY, abs=1e-6)


@pytest.mark.parametrize("joint", [letters(), any_joint(2, 4)], ids=["letters", "random"])
def test_counting_masks_gives_each_sequence_exactly_its_log_probability(joint: Tensor) -> None:
    x_0, chance = states(joint)
    nats = every_order(Exact(joint), x_0, joint.shape[0])
    torch.testing.assert_close(nats, -chance.log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("block_length", [1, 2, 3, 4, 9])
def test_blocks_of_any_length_give_each_sequence_exactly_its_log_probability(block_length: int) -> None:
    joint = any_joint(2, 4)
    x_0, chance = states(joint)
    nats = every_order(Exact(joint, block_length), x_0, 2)
    torch.testing.assert_close(nats, -chance.log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_a_bound_of_few_steps_is_looser_by_what_is_published(steps: int) -> None:
    found = expected_bound(Linear(), steps)
    assert found == pytest.approx(ENTROPY * (1 + 1 / steps), abs=1e-9)
    assert found == pytest.approx(GOLDEN["toy_nelbo"]["discrete_T"][str(steps)], abs=1e-6)


@pytest.mark.parametrize("strata", [1, 3, 4])
def test_random_masks_agree_with_the_enumeration(strata: int) -> None:
    joint = any_joint(3, 3)
    x_0 = torch.tensor([0, 2, 1]).expand(4000, -1)
    expected = -float(joint[0, 2, 1].log())
    model, rng = Exact(joint), Rng.stream("masks", strata)
    assert within(count_bound(model, x_0, rng, strata, mask_id=3).mean(1), expected)
    assert within(time_bound(model, x_0, CosineAlpha(), rng, strata, mask_id=3).mean(1), expected)  # finite variance
    assert within(count_bound(Exact(joint, 2), x_0, rng, strata, mask_id=3).mean(1), expected)


def test_random_masks_agree_with_the_bound_of_few_steps() -> None:
    x_0, chance = states(letters())
    rows = x_0.repeat_interleave((chance * 8000).long(), 0)
    nats = time_bound(Exact(letters()), rows, Linear(), Rng.stream("steps"), 3, 2, mask_id=3).mean(1)
    assert within(nats, GOLDEN["toy_nelbo"]["discrete_T"]["2"])


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(3)], ids=repr)
def test_a_network_that_reads_the_time_is_told_one_that_fits_the_count(schedule: Schedule) -> None:
    def reads_time(x_t: Tensor, t: Tensor, cond: Any = None, *, where: Tensor) -> Categorical:
        logits = torch.stack([3 * t, torch.zeros_like(t)], -1)[:, None].expand(*x_t.shape, 2)
        return pick(logits, where)

    length = 5
    x_0 = torch.zeros(4000, length, dtype=torch.long)
    times, weights = nodes(power=3)
    # Its cross-entropy c depends on t alone, so the bound is L times the integral of c over mask ratios.
    cross_entropy = torch.nn.functional.softplus(-3 * times)
    expected = float((weights * -schedule.alpha_dot(times) * cross_entropy).sum()) * length
    nats = count_bound(reads_time, x_0, Rng.stream("time"), 2, schedule, mask_id=2).mean(1)
    assert within(nats, expected)


def test_a_network_of_one_mask_ratio_has_the_bound_of_any_other() -> None:
    model, x_0 = Exact(letters()), states(letters())[0]
    fixed, linear = (count_bound(model, x_0, Rng.stream(0), 2, kind, mask_id=3) for kind in (Fixed(0.5), Linear()))
    assert torch.equal(fixed, linear)


def test_counting_masks_has_no_noise_where_every_token_costs_the_same() -> None:
    x_0 = torch.zeros(50, 7, dtype=torch.long)
    nats = count_bound(constant(4), x_0, Rng.stream("none"), 3, mask_id=4)
    torch.testing.assert_close(nats, torch.full((50, 3), 7 * math.log(4), dtype=torch.float64))


def test_bernoulli_masks_have_the_variance_that_is_known() -> None:
    x_0 = torch.zeros(20_000, 1, dtype=torch.long)
    nats = time_bound(constant(2), x_0, Linear(), Rng.stream("variance"), 10, mask_id=2) / math.log(2)
    assert within(nats[:, 5:].flatten(), 1.0)
    assert float(nats[:, 3:8].var()) == pytest.approx(GOLDEN["estimator_var"]["U[.3,.8]"], rel=0.02)
    assert float(nats[:, 5:].var()) == pytest.approx(GOLDEN["estimator_var"]["U[.5,1]"], rel=0.02)


def genmd4(mu: Callable[[Tensor], Tensor], t_min: float) -> tuple[float, float]:
    """Expectation of `state_dependent_bound` on one token, and of its part at t_min."""
    q, w = (torch.tensor(GOLDEN["genmd4"][key], dtype=torch.float64) for key in ("q", "w"))
    level, weights = nodes(300, 6)
    t = t_min + (1 - t_min) * level

    def model(x_t: Tensor, t: Tensor, cond: Any = None, *, where: Tensor) -> Categorical:
        return pick(mu(t.double()).log()[:, None], where)

    total = rest = 0.0
    for token in range(3):
        x_0 = torch.full((len(t), 1), token)
        masked, visible = (
            state_dependent_bound(model, w, x_0, Given(1 - level, torch.tensor(noise)), 1, t_min, mask_id=3)[:, 0]
            for noise in (0.0, 1.0)
        )
        chance = t ** w[token]
        total += float(q[token] * (weights * (chance * masked + (1 - chance) * visible)).sum())
        rest += float(q[token] * visible[0])
    return total, rest


def test_learned_rates_with_the_posterior_of_their_time_give_the_entropy() -> None:
    q, w = (torch.tensor(GOLDEN["genmd4"][key], dtype=torch.float64) for key in ("q", "w"))

    def mu(t: Tensor) -> Tensor:
        weight = q * t[:, None] ** w
        return weight / weight.sum(1, keepdim=True)

    total, rest = genmd4(mu, 1e-3)
    at_end = torch.tensor([1e-3], dtype=torch.float64)
    own = float(-(q * at_end**w * mu(at_end).log()).sum())
    assert own == pytest.approx(0.001495, abs=1e-6)
    assert total - rest + own == pytest.approx(GOLDEN["genmd4"]["H"], abs=1e-7)
    assert total - rest == pytest.approx(1.028158, abs=1e-6)
    # What is left at t_min is decoded by the rates alone, which do not know q: looser by that much, and not more.
    assert 0 < rest - own < 1e-4


def test_learned_rates_with_a_fixed_prediction_cost_what_is_published() -> None:
    golden = GOLDEN["genmd4"]
    q = torch.tensor(golden["q"], dtype=torch.float64)
    total, rest = genmd4(lambda t: q.expand(len(t), -1), golden["t1"])
    # The published number leaves out the interval's length 1 - t1, and its alpha ends at eps.
    published = golden["loss_trunc"] * (1 - golden["t1"]) / (1 - golden["eps"])
    assert total - rest == pytest.approx(published, abs=1e-5)
    whole, _ = genmd4(lambda t: q.expand(len(t), -1), 1e-9)
    assert whole == pytest.approx(golden["loss_fixed_mu"], abs=1e-4)


def test_equal_rates_are_the_linear_schedule() -> None:
    joint, t_min = any_joint(3, 3), 1e-3
    x_0 = torch.tensor([1, 1, 2]).expand(4000, -1)
    model = Exact(joint)
    nats = state_dependent_bound(model, torch.ones(3), x_0, Rng.stream("equal"), 4, t_min, mask_id=3).mean(1)
    # In the first t_min of the time about t_min L tokens are guessed at chance.
    assert abs(float(nats.mean()) + float(joint[1, 1, 2].log())) < 3 * float(nats.std()) / math.sqrt(4000) + 4e-3


def networks() -> dict[str, torch.nn.Module]:
    sizes = {"width": 16, "depth": 1, "heads": 2}
    made: dict[str, torch.nn.Module] = {
        "ar": Autoregressive(2, **sizes),
        "bd3 of 1": BlockDiffusion(2, block_length=1, cond_width=8, **sizes),
        "bd3 of 3": BlockDiffusion(2, block_length=3, cond_width=8, **sizes),
        "bd3 of 6": BlockDiffusion(2, block_length=6, **sizes),
        "mdlm": MDLM(2, cond_width=8, has_time=True, **sizes),
        "genmd4": MDLM(2, has_exponents=True, **sizes),
    }
    for name, network in made.items():
        rng = Rng.stream(name)
        for key, parameter in network.named_parameters():  # the head starts at zero, where all networks agree
            parameter.data = 0.3 * rng.normal(parameter.shape) + float("norm" in key)
        network.eval()
    return made


NETWORKS = networks()


@pytest.mark.parametrize("name", ["ar", "bd3 of 1"])
@torch.no_grad()
def test_the_likelihoods_of_an_exact_network_sum_to_one(name: str) -> None:
    every = torch.cartesian_prod(*[torch.arange(2)] * 6)
    rows = row_nll(NETWORKS[name], every, Rng.stream(0), 4, mask_id=2)
    assert not rows.is_bound
    assert float(torch.exp(-rows.nats).sum()) == pytest.approx(1, abs=1e-5)
    assert rows.nats.std() > 0.1
    assert rows.variance is not None
    assert not rows.variance.any()


@pytest.mark.parametrize("name", ["bd3 of 3", "mdlm", "genmd4"])
@torch.no_grad()
def test_the_bounds_of_a_network_say_so_and_sum_to_less_than_one(name: str) -> None:
    every = torch.cartesian_prod(*[torch.arange(2)] * 4)
    rows = row_nll(NETWORKS[name], every.repeat(400, 1), Rng.stream(name), 4, mask_id=2)
    assert rows.is_bound
    nats = rows.nats.view(400, -1)
    chances = torch.exp(-nats.mean(0))
    error = (chances.square() * nats.var(0) / 400).sum().sqrt()
    assert float(chances.sum()) < 1 + 3 * float(error)
    assert rows.variance is not None
    # The variance that each row says it has is, on average, the one it has: 6,400 values, known to 4% or so.
    assert float(rows.variance.mean()) == pytest.approx(float(nats.var(0).mean()), rel=0.12)


@torch.no_grad()
def test_one_block_as_long_as_the_text_is_the_plain_bound() -> None:
    network = NETWORKS["bd3 of 6"]
    x_0 = torch.randint(2, (4, 6), generator=torch.Generator().manual_seed(0))

    def plain(x_t: Tensor, t: Tensor, cond: Any = None, *, where: Tensor) -> Categorical:
        answer: Categorical = network(x_t, t, where=where)
        return answer

    by_block, whole = (count_bound(model, x_0, Rng.stream(1), 3, mask_id=2) for model in (network, plain))
    torch.testing.assert_close(by_block, whole, rtol=1e-5, atol=1e-5)


def test_an_autoregressive_model_is_asked_once_for_all_tokens() -> None:
    logits = torch.tensor([0.2, 0.3, 0.5]).log()
    x_0 = torch.tensor([[2, 0], [1, 1]])
    nats = exact_nll(lambda x, t, cond: Categorical(logits.expand(*x.shape, 3)), x_0)
    assert nats.dtype == torch.float64
    assert nats.exp().tolist() == pytest.approx([10, 1 / 0.09])


@torch.no_grad()
def test_a_row_depends_on_its_own_stream_only() -> None:
    x_0 = torch.randint(2, (6, 5), generator=torch.Generator().manual_seed(0))
    for name in ("bd3 of 3", "mdlm", "genmd4"):
        model = NETWORKS[name]
        together = row_nll(model, x_0, Rng.per_sample(range(6)), 2, mask_id=2).nats
        alone = row_nll(model, x_0[4:5], Rng.per_sample([4]), 2, mask_id=2).nats
        torch.testing.assert_close(together[4:5], alone, rtol=1e-5, atol=1e-5)


def corpus(n: int = 40, length: int = 5) -> Tensor:
    return torch.randint(2, (n, length), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("sizes", [[40], [1, 39], [16, 16, 8]])
def test_the_corpus_does_not_see_how_rows_are_batched(sizes: list[int]) -> None:
    model, x_0 = NETWORKS["mdlm"], corpus()
    whole = corpus_likelihood(model, [x_0], Rng.stream(0), mask_id=2, strata=2)
    parts = corpus_likelihood(model, x_0.split(sizes), Rng.stream(0), mask_id=2, strata=2)
    assert parts.nats == pytest.approx(whole.nats, rel=1e-6)
    assert parts.standard_error == pytest.approx(whole.standard_error, rel=1e-5)
    assert parts.monte_carlo_error == pytest.approx(whole.monte_carlo_error, rel=1e-4)


def test_a_short_row_at_the_end_counts_as_its_tokens_do() -> None:
    batches = [corpus(8, 5), corpus(1, 3), corpus(1, 0)]
    found = corpus_likelihood(constant(2), batches, Rng.stream(0), mask_id=2, strata=2)
    assert (found.n_tokens, found.n_rows) == (43, 9)
    assert found.bits_per_token() == pytest.approx(1)
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert found.monte_carlo_error == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["plain", "blocks", "causal", "rates"])
def test_a_condition_reaches_the_model_with_its_own_rows(kind: str) -> None:
    class OfLabel:
        """Certain to 99% that every token is the row's label."""

        traits = NetworkTraits(
            is_autoregressive=kind == "causal",
            block_length=2 if kind == "blocks" else None,
            has_exponents=kind == "rates",
        )
        exponents = torch.ones(3)

        def __call__(
            self, x_t: Tensor, t: Tensor, cond: Condition, *, where: Any = None, clean: Any = None
        ) -> Categorical:
            logits = torch.where(cond.labels[:, None] == torch.arange(3), 0.99, 0.005).log()
            return pick(logits[:, None].expand(*x_t.shape, 3), where)

    labels = torch.tensor([2, 0, 1, 1, 0])
    x_0 = labels[:, None].expand(-1, 4)
    batches = [(x_0[:3], Condition(labels[:3])), (x_0[3:], Condition(labels[3:]))]
    found = corpus_likelihood(OfLabel(), batches, Rng.stream(0), mask_id=3, strata=2)
    assert found.nats_per_token() == pytest.approx(-math.log(0.99), abs=0.02)


def test_the_standard_error_of_rows_of_one_length_is_that_of_their_mean() -> None:
    x_0 = corpus()
    found = corpus_likelihood(NETWORKS["ar"], [x_0], Rng.stream(0), mask_id=2)
    with torch.no_grad():
        per_token = exact_nll(NETWORKS["ar"], x_0) / 5
    assert found.nats_per_token() == pytest.approx(float(per_token.mean()))
    assert found.standard_error == pytest.approx(float(per_token.std()) / math.sqrt(40))
    assert found.monte_carlo_error == 0
    assert corpus_likelihood(NETWORKS["ar"], [x_0[:1]], Rng.stream(0), mask_id=2).standard_error is None


def test_the_noise_of_the_masks_is_what_it_is_said_to_be() -> None:
    runs = [
        corpus_likelihood(Exact(any_joint(3, 3)), [corpus(20, 3)], Rng.stream(seed), mask_id=3, strata=2)
        for seed in range(500)
    ]
    said = np.mean([float(run.monte_carlo_error or 0) ** 2 for run in runs])
    # A variance of 500 normal numbers is known to sqrt(2 / 500) = 6%.
    assert said == pytest.approx(np.var([run.nats_per_token() for run in runs], ddof=1), rel=0.2)
    single = corpus_likelihood(Exact(any_joint(3, 3)), [corpus(20, 3)], Rng.stream(0), mask_id=3, strata=1)
    assert single.monte_carlo_error is None


def test_units_are_those_that_are_published() -> None:
    golden = GOLDEN["units"]
    text8 = Likelihood(1.37 * math.log(2) * 50, 50, 1, True, n_characters=50)
    assert text8.perplexity() == pytest.approx(golden["bpc_1.37_ppl"])
    assert text8.bits_per_char() == pytest.approx(1.37)
    words = Likelihood(10 * math.log(23.21), 10, 1, True, n_bytes=40)
    assert words.nats_per_token() == pytest.approx(golden["ppl_23.21_nats"])
    assert words.bits_per_token() == pytest.approx(golden["ppl_23.21_bits"])
    assert words.bits_per_byte() == pytest.approx(golden["ppl_23.21_bits"] / 4)
    image = Likelihood(golden["bpd_2.75_nats"] * 3072, 3072, 1, True, n_dims=3072)
    assert image.bits_per_dim() == pytest.approx(2.75)
    assert image.nats / math.log(2) == pytest.approx(8448)
    uniform = corpus_likelihood(constant(27), [corpus()], Rng.stream(0), mask_id=27, strata=2)
    assert uniform.bits_per_token() == pytest.approx(golden["uniform27_bits"])


def test_a_report_has_every_number_with_its_error_and_says_what_it_is() -> None:
    found = Likelihood(120.0, 60, 6, True, 0.1, 0.02, n_characters=240)
    entries = {entry.name: entry for entry in found.entries("test text")}
    assert list(entries) == [
        *("bits_per_token[bound]", "perplexity[bound]", "bits_per_char[bound]", "monte_carlo_error[bits_per_token]")
    ]
    assert all((entry.of, entry.n_samples) == ("test text", 60) for entry in entries.values())
    # An error is the value's change when the nats a token change by theirs.
    moved = replace(found, nats=found.nats + 1e-6 * found.n_tokens)
    for name, value in (("bits_per_token", moved.bits_per_token()), ("perplexity", moved.perplexity())):
        entry = entries[f"{name}[bound]"]
        assert entry.standard_error == pytest.approx((value - entry.value) / 1e-6 * 0.1, rel=1e-4)
    assert entries["bits_per_char[bound]"].standard_error == pytest.approx(0.1 / math.log(2) / 4)
    exact = replace(found, is_bound=False, monte_carlo_error=0.0, standard_error=None)
    assert [entry.name for entry in exact.entries("x")][:2] == ["bits_per_token[exact]", "perplexity[exact]"]
    assert exact.entries("x")[0].standard_error is None


def test_a_likelihood_of_zero_is_an_infinite_number_and_no_error() -> None:
    found = corpus_likelihood(Exact(letters()), [torch.zeros(3, 2).long()], Rng.stream(0), mask_id=3, strata=2)
    assert found.perplexity() == math.inf
    assert [entry.value for entry in found.entries("impossible")][:2] == [math.inf, math.inf]


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="no tokens to score"):
        corpus_likelihood(constant(2), [], Rng.stream(0), mask_id=2)
    with pytest.raises(ValueError, match=r"call model\.eval\(\) first"):
        corpus_likelihood(Autoregressive(2, width=16, depth=1, heads=2), [corpus()], Rng.stream(0), mask_id=2)
    with pytest.raises(ValueError, match="strata must be 1 or even, got 3"):
        corpus_likelihood(constant(2), [corpus()], Rng.stream(0), mask_id=2, strata=3)
    with pytest.raises(ValueError, match="n_characters of the corpus is unknown"):
        Likelihood(1.0, 1, 1, True).bits_per_char()


def test_packed_documents_are_scored_apart_where_they_were_trained_apart() -> None:
    torch.manual_seed(0)
    network, eos = MDLM(5, width=16, depth=2, heads=2).eval(), 4
    torch.nn.init.normal_(network.head.weight)
    first, second = torch.tensor([[0, 1, 2, 4]]), torch.tensor([[3, 3, 1, 4]])
    other = torch.tensor([[2, 2, 0, 4]])
    where = torch.tensor([[True] * 4 + [False] * 4])

    def score(x_0: Tensor, eos: int | None) -> Tensor:
        masked = Given(torch.where(where, 0.0, 1.0) + torch.arange(8) / 100)  # the first document is masked, whole
        return count_bound(network, x_0, Given(torch.tensor(0.49), *masked.values), 1, mask_id=5, eos=eos)

    rows = [torch.cat([first, tail], 1) for tail in (second, other)]
    assert torch.equal(score(rows[0], eos), score(rows[1], eos))
    assert not torch.equal(score(rows[0], None), score(rows[1], None))

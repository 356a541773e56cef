"""Laws of the tree grammar: belief propagation must say what listing every sequence says."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.data.text.oracle import OracleTree
from maskgen.evaluation.metrics.bounds import count_bound
from maskgen.evaluation.metrics.likelihood import corpus_likelihood
from maskgen.schedules import Schedule
from tests.enumeration import SCHEDULES, every_order, every_time, within
from tests.toys import frequencies, posterior

SMALL = OracleTree(depth=2, symbols=3, seed=1)


def listed(tree: OracleTree) -> Tensor:
    """The joint of the tokens (V,) * L of a tree of depth 2, summed over its three inner nodes by hand."""
    assert tree.depth == 2
    symbols = range(tree.vocab_size)
    joint = torch.zeros((tree.vocab_size,) * 4, dtype=torch.float64)
    for top, left, right in itertools.product(symbols, repeat=3):
        chance = tree.root[top] * tree.table[top, left, right]
        for a, b, c, d in itertools.product(symbols, repeat=4):
            joint[a, b, c, d] += chance * tree.table[left, a, b] * tree.table[right, c, d]
    return joint


JOINT = listed(SMALL)


def every(tree: OracleTree, with_mask: bool = False) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(tree.vocab_size + with_mask)] * tree.length)


def test_the_log_probability_is_that_of_the_list() -> None:
    torch.testing.assert_close(SMALL.log_prob(every(SMALL)).exp(), JOINT.flatten(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("depth", "symbols"), [(1, 2), (2, 3), (3, 3), (4, 2)])
def test_probabilities_sum_to_one(depth: int, symbols: int) -> None:
    tree = OracleTree(depth, symbols)
    assert float(tree.log_prob(every(tree)).exp().sum()) == pytest.approx(1, abs=1e-12)


def test_masked_tokens_are_summed_over() -> None:
    x_t = torch.tensor([[1, 3, 3, 2], [3, 3, 3, 3], [3, 0, 1, 3]])
    expected = torch.stack([JOINT[1, :, :, 2].sum(), JOINT.sum(), JOINT[:, 0, 1].sum()])
    torch.testing.assert_close(SMALL.log_prob(x_t).exp(), expected, rtol=1e-12, atol=0)


def test_the_posterior_is_that_of_the_list_for_every_set_of_masks() -> None:
    x_t = every(SMALL, with_mask=True)
    found = SMALL.posterior(x_t).logits.exp()
    expected = torch.softmax(posterior(JOINT)(x_t, torch.zeros(len(x_t))).logits, -1)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-15)


def test_the_posterior_is_the_ratio_of_two_probabilities_on_a_tree_too_large_to_list() -> None:
    tree = OracleTree(depth=6, symbols=5, seed=2)
    x_t = torch.where(Rng.stream(0).uniform((4, 64)) < 0.6, 5, tree.sample(4, Rng.stream(1)))
    x_t[:, 17] = 5
    with_token = x_t[:, None].repeat(1, 5, 1)
    with_token[:, :, 17] = torch.arange(5)
    expected = tree.log_prob(with_token.flatten(0, 1)).view(4, 5) - tree.log_prob(x_t)[:, None]
    torch.testing.assert_close(tree.posterior(x_t).logits[:, 17], expected, rtol=1e-10, atol=1e-10)


def test_a_long_sequence_does_not_underflow() -> None:
    tree = OracleTree(depth=10, symbols=4)
    x_0 = tree.sample(2, Rng.stream(0))
    assert tree.log_prob(x_0).isfinite().all()
    assert float(tree.log_prob(x_0).max()) < -746  # exp of it is 0 in float64
    masked = tree.posterior(torch.full_like(x_0, 4)).logits
    assert masked.isfinite().all()


def test_samples_have_the_law_of_the_list() -> None:
    found = frequencies(SMALL.sample(20_000, Rng.stream("samples")), JOINT)
    error = (JOINT * (1 - JOINT) / 20_000).sqrt()
    squares = ((found - JOINT) / error).square()
    # 81 outcomes: the mean of that many squared deviations is 1, give or take sqrt(2 / 81).
    assert float(squares.mean()) == pytest.approx(1, abs=0.5)


def test_a_sample_depends_on_its_own_seed_only() -> None:
    together = SMALL.sample(5, Rng.per_sample(range(5)))
    assert torch.equal(together[3:4], SMALL.sample(1, Rng.per_sample([3])))


def test_the_grammar_is_that_of_its_seed() -> None:
    assert torch.equal(SMALL.table, OracleTree(depth=2, symbols=3, seed=1).table)
    assert not torch.equal(SMALL.table, OracleTree(depth=2, symbols=3, seed=2).table)


def test_the_entropy_is_that_of_the_list_and_of_uniform_tables() -> None:
    assert SMALL.entropy() == pytest.approx(-float((JOINT * JOINT.log()).sum()), rel=1e-12)
    assert OracleTree(depth=3, symbols=3, sharpness=0).entropy() == pytest.approx(8 * math.log(3), rel=1e-12)
    default = OracleTree()
    assert within(-default.log_prob(default.sample(20_000, Rng.stream("entropy"))), default.entropy())


def test_a_denoiser_is_asked_where_it_is_needed_and_sees_what_is_kept() -> None:
    x_t, t = torch.tensor([[0, 3, 1, 3], [3, 3, 2, 0]]), torch.zeros(2)
    where = x_t == 3
    assert torch.equal(SMALL(x_t, t, where=where).logits, SMALL.posterior(x_t).logits[where])
    assert torch.equal(SMALL(x_t, t).logits, SMALL.posterior(x_t).logits)
    kept = TokenSubset(torch.tensor([[0, 1], [1, 2]]), 4)
    seen = torch.tensor([[0, 3, 3, 3], [3, 3, 2, 3]])
    assert torch.equal(SMALL(x_t, t, subset=kept).logits, SMALL.posterior(seen).logits)


def test_the_chain_rule_holds_in_every_order() -> None:
    x_0 = every(SMALL)
    torch.testing.assert_close(every_order(SMALL, x_0, 3), -SMALL.log_prob(x_0), rtol=1e-10, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_bound_is_the_log_probability_for_every_schedule(schedule: Schedule) -> None:
    x_0 = torch.tensor([2, 0, 1, 1])
    assert every_time(SMALL, x_0, schedule, 3) == pytest.approx(-float(SMALL.log_prob(x_0[None])), abs=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_random_masks_find_the_log_probability_on_a_larger_tree(schedule: Schedule) -> None:
    tree = OracleTree(depth=4, symbols=4, seed=5)
    x_0 = tree.sample(1, Rng.stream("text"))
    nats = count_bound(tree, x_0.expand(1000, -1), Rng.stream("bound", repr(schedule)), 4, schedule, mask_id=4).mean(1)
    assert within(nats, -float(tree.log_prob(x_0)))


def test_a_corpus_costs_its_entropy_within_its_standard_error() -> None:
    tree = OracleTree(depth=3, symbols=4)
    rows = tree.sample(1000, Rng.stream("corpus"))
    found = corpus_likelihood(tree, rows.split(300), Rng.stream("masks"), mask_id=4, strata=4)
    assert found.standard_error is not None
    assert found.monte_carlo_error is not None
    assert 0 < found.monte_carlo_error < found.standard_error
    assert abs(found.nats_per_token() - tree.entropy() / 8) < 3 * found.standard_error
    own = -float(tree.log_prob(rows).mean()) / 8
    assert abs(found.nats_per_token() - own) < 3 * found.monte_carlo_error


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="got 0, 4 and 2"):
        OracleTree(depth=0)
    with pytest.raises(ValueError, match="symbols at least 2"):
        OracleTree(symbols=1)
    with pytest.raises(ValueError, match=r"5\^8 sequences are more than"):
        OracleTree(symbols=5).entropy()

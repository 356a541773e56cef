"""Laws of the objectives of text that is written from left to right."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskgen.core.predictions import Batch, Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.models.blockwise import Autoregressive, BlockDiffusion
from maskgen.models.mdlm import MDLM
from maskgen.objectives import BlockTokens, MaskedTokens, NextToken
from maskgen.processes import Absorbing, StateDependent
from maskgen.schedules import Cosine, Linear, Schedule
from tests.enumeration import SCHEDULES, nodes
from tests.toys import Given, pick

V, L = 5, 12


def text(n: int = 6, length: int = L, vocab_size: int = V) -> Tensor:
    return (Rng.stream("text").uniform((n, length)) * vocab_size).long()


def opened(network: Any) -> Any:
    """The network with every path open."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def bd3(block_length: int) -> Any:
    return opened(BlockDiffusion(V, block_length, width=8, depth=2, heads=2))


def block_tokens(schedule: Schedule = Linear(), **more: Any) -> BlockTokens:
    return BlockTokens(Absorbing(V, schedule, "bernoulli"), **more)


class Watch:
    """A network of blocks that knows nothing, and remembers what it was asked."""

    def __init__(self, block_length: int) -> None:
        self.block_length = block_length

    def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor, clean: Tensor) -> Categorical:
        self.x_t, self.where, self.clean = x_t, where, clean
        return pick(torch.zeros(*x_t.shape, V), where)


# Blocks


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=str)
def test_blocks_of_one_cost_the_exact_chain_rule_whatever_the_noise(schedule: Schedule) -> None:
    network, x_0 = bd3(1), text()
    first, second = (block_tokens(schedule)(network, Batch(x_0), Rng.stream(seed)).value for seed in (0, 1))
    assert torch.equal(first, second)
    chain = 0.0
    for end in range(L):
        x_t = torch.cat([x_0[:, :end], torch.full((len(x_0), 1), V)], 1)
        logits = network(x_t, torch.ones(len(x_0))).logits[:, -1]
        chain += F.cross_entropy(logits, x_0[:, end]).item() / L
    assert first.item() == pytest.approx(chain, rel=1e-5)


@pytest.mark.parametrize("block_length", [L, 3 * L])
def test_one_block_of_all_costs_what_mdlm_costs(block_length: int) -> None:
    network, mdlm = bd3(block_length), MDLM(V, width=8, depth=2, heads=2)
    mdlm.load_state_dict(network.state_dict())
    blocks = block_tokens()(network, Batch(text()), Rng.stream(0))
    whole = MaskedTokens(Absorbing(V, Linear(), "bernoulli"), "elbo")(mdlm, Batch(text()), Rng.stream(0))
    torch.testing.assert_close(blocks.value, whole.value)
    assert blocks.logs.keys() == whole.logs.keys()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_exact_denoiser_of_a_block_costs_its_entropy_given_the_clean_ones(schedule: Schedule) -> None:
    joint = torch.tensor([[0.1, 0.3], [0.05, 0.15], [0.25, 0.15]], dtype=torch.float64).view(3, 2)
    joint = F.pad(joint, (0, V - 2, 0, V - 3))
    chains = joint.sum(1), joint / joint.sum(1, keepdim=True)  # of the first token, of the second given the first

    class Exact:
        block_length = 1

        def __call__(self, x_t: Tensor, t: Tensor, *, where: Tensor, clean: Tensor) -> Categorical:
            probs = torch.stack([chains[0].expand(len(clean), -1), chains[1][clean[:, 0]]], 1)
            return pick(probs.log(), where)

    entropy = -float(torch.special.xlogy(joint, joint).sum())
    cost = sum(
        2 * float(joint[tuple(x)] * block_tokens(schedule)(Exact(), Batch(x[None]), Rng.stream(0)).value)
        for x in joint.nonzero()
    )
    assert cost == pytest.approx(entropy, rel=1e-5)


def test_two_blocks_of_two_at_times_of_their_own_are_an_unbiased_bound() -> None:
    network, x_0, schedule = bd3(2), text(1, 4), Linear()
    times, weights = nodes(4)  # the integrand is a polynomial
    mixed = 0.0
    for (t_a, w_a), (t_b, w_b) in itertools.product(zip(times, weights, strict=True), repeat=2):
        for masked in itertools.product([True, False], repeat=4):
            level = torch.stack([t_a, t_b])
            # Strata are handed out by rank: the first block is in the lower one.
            uniform = torch.tensor([1.0, 2.0]) - 2 * level
            rng = Given(torch.tensor([0.0, 1.0]), uniform, torch.where(torch.tensor(masked), 0.0, 1.0))
            chance = math.prod(float(t if m else 1 - t) for m, t in zip(masked, (t_a, t_a, t_b, t_b), strict=True))
            value = block_tokens(schedule)(network, Batch(x_0), rng).value.item()
            mixed += float(w_a * w_b) * chance * value
    apart = 0.0
    for start, length in ((0, 2), (2, 4)):
        for t, w in zip(times, weights, strict=True):
            for masked in itertools.product([True, False], repeat=2):
                is_masked = torch.zeros(length, dtype=torch.bool)
                is_masked[start:] = torch.tensor(masked)
                x_t = torch.where(is_masked, V, x_0[:, :length])
                nats = -network(x_t, torch.ones(1)).log_prob(x_0[:, :length])[0, is_masked].sum()
                apart += float(w / t) * math.prod(float(t if m else 1 - t) for m in masked) * nats.item() / 4
    assert mixed == pytest.approx(apart, rel=1e-4)


def test_each_block_has_a_time_of_its_own_the_last_and_shorter_one_too() -> None:
    watch, x_0 = Watch(40), torch.zeros(50, 100, dtype=torch.long)
    block_tokens()(watch, Batch(x_0), Rng.stream(0))
    assert torch.equal(watch.clean, x_0)
    shares = torch.stack([part.float().mean(1) for part in watch.where.split(40, 1)], 1)  # (50, 3)
    between = shares.var()
    within = 0.25 / 20  # at most, of a share of 20 or 40 tokens
    assert float((shares[:, 0] - shares[:, 1]).var()) > between  # 2 between, were they the same it would be 0
    assert float(between) > 4 * within


def test_knowing_nothing_costs_log_v_even_with_a_shorter_last_block() -> None:
    losses = [block_tokens()(Watch(5), Batch(text(512)), Rng.stream(k)).value for k in range(20)]
    values = torch.stack(losses)
    assert abs(float(values.mean()) - math.log(V)) < 4 * float(values.std()) / math.sqrt(20)
    assert block_tokens().baseline == pytest.approx(math.log(V))


def test_times_are_drawn_from_the_interval() -> None:
    watch = Watch(2000)
    block_tokens(interval=(0.3, 0.5))(watch, Batch(torch.zeros(40, 2000, dtype=torch.long)), Rng.stream(0))
    share = watch.where.float().mean(1)
    assert 0.25 < float(share.min()) < 0.32
    assert 0.48 < float(share.max()) < 0.55


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1)])
def test_an_interval_that_is_none_is_refused(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"interval must lie in \[0, 1\], low first, got"):
        block_tokens(interval=interval)


@pytest.mark.parametrize("process", [Absorbing(V, Linear(), "exact"), StateDependent(V)])
def test_blocks_need_tokens_masked_one_by_one(process: Any) -> None:
    with pytest.raises(ValueError, match="block_tokens needs process absorbing with count bernoulli"):
        BlockTokens(process)


def test_the_gradient_reaches_every_parameter() -> None:
    network = bd3(3)
    block_tokens()(network, Batch(text()), Rng.stream(0)).value.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


# The next token


def ar() -> Any:
    return opened(Autoregressive(V, width=8, depth=2, heads=2))


def test_the_next_token_costs_its_cross_entropy_given_those_before() -> None:
    network, x_0 = ar(), text()
    loss = NextToken(V)(network, Batch(x_0), Rng.stream(0))
    chain = 0.0
    for end in range(L):  # what comes later may be anything
        begun = torch.cat([x_0[:, :end], torch.zeros_like(x_0[:, end:])], 1)
        chain += F.cross_entropy(network(begun, torch.zeros(len(x_0))).logits[:, end], x_0[:, end]).item() / L
    assert loss.value.item() == pytest.approx(chain, rel=1e-5)
    assert float(loss.logs["cross_entropy"][0] / loss.logs["cross_entropy"][1]) == pytest.approx(chain, rel=1e-5)
    assert loss.logs["accuracy"][1] == x_0.numel()


def test_a_new_network_costs_the_logarithm_of_its_vocabulary() -> None:
    for objective, network in (
        (NextToken(V), Autoregressive(V, width=8, depth=1, heads=2)),
        (block_tokens(), BlockDiffusion(V, 1, width=8, depth=1, heads=2)),
    ):
        loss = objective(network, Batch(text()), Rng.stream(0))  # type: ignore[operator]
        assert loss.value.item() == pytest.approx(math.log(V), rel=1e-6)
        assert objective.baseline == pytest.approx(math.log(V))  # type: ignore[attr-defined]


class Reader:
    """Remembers its input; knows which token is right, whatever it was shown."""

    def __init__(self, x_0: Tensor, training: bool = True) -> None:
        self.x_0, self.training = x_0, training

    def __call__(self, x_in: Tensor, t: Tensor, cond: Condition | None) -> Categorical:
        self.x_in = x_in
        return Categorical(50.0 * F.one_hot(self.x_0, V))


@pytest.mark.parametrize(("length", "ratio", "n"), [(20, 0.15, 3), (41, 0.15, 6), (7, 0.15, 1), (13, 0.5, 6)])
def test_exactly_the_share_of_inputs_is_masked_in_each_row_and_no_target(length: int, ratio: float, n: int) -> None:
    reader = Reader(text(200, length))
    loss = NextToken(V, ratio)(reader, Batch(reader.x_0), Rng.stream(0))
    is_masked = reader.x_in == V
    assert is_masked.sum(1).tolist() == [n] * 200
    assert torch.equal(reader.x_in[~is_masked], reader.x_0[~is_masked])
    assert bool(is_masked.any(0)[:-1].all())  # every place has its turn, but the last, which is no input
    assert not is_masked[:, -1].any()
    assert loss.value.item() == pytest.approx(0, abs=1e-6)


def test_inputs_are_masked_in_training_only() -> None:
    for ratio, training in ((0.5, False), (0.0, True)):
        reader = Reader(text(), training)
        NextToken(V, ratio)(reader, Batch(reader.x_0), Rng.stream(0))
        assert torch.equal(reader.x_in, reader.x_0)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_share_of_inputs_that_cannot_be_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"input_mask_ratio must be in \[0, 1\), got {ratio}"):
        NextToken(V, ratio)


# Dropped tokens


@pytest.mark.parametrize("case", ["bd3", "ar"])
def test_dropping_tokens_is_refused_with_the_way_out(case: str) -> None:
    objective, network = (block_tokens(), bd3(4)) if case == "bd3" else (NextToken(V), ar())
    with pytest.raises(
        ValueError, match=r"only objectives denoising and masked_tokens drop .* use keep_ratio 1, got 0.5"
    ):
        objective(network, Batch(text()), Rng.stream(0), keep_ratio=0.5)  # type: ignore[operator]

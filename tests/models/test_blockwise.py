"""Laws of the networks that write from left to right, and of their cache."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Categorical
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models.blockwise import Autoregressive, BlockDiffusion, Blockwise
from maskgen.models.cached import Cached
from maskgen.models.mdlm import MDLM
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.layout import Blocks
from maskgen.samplers.masked.order import Confidence, Random
from maskgen.samplers.masked.remask import Cap
from maskgen.samplers.masked.unmasking import Bernoulli, One
from tests.cases import each

V, L = 5, 11
VARIANTS: list[dict[str, Any]] = [
    {"block_length": 1},
    {"block_length": 4, "cond_width": 6},  # the last block is shorter
    {"block_length": 3, "qk_norm": True, "has_mask_row": True},
    {"block_length": 64},
]
every_variant = each("variant", VARIANTS)
every_network = each("variant", [*VARIANTS, {}])  # {} is autoregression


def build(variant: dict[str, Any] | None = None, vocab_size: int = V) -> Any:
    """A network in float64 whose every path is open and matters: `bd3` with a block length, `ar` without."""
    torch.manual_seed(0)
    kind = BlockDiffusion if variant else Autoregressive
    network = kind(vocab_size, **({"width": 8, "depth": 2, "heads": 2} | (variant or {}))).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def given(n: int = 3, length: int = L) -> tuple[Tensor, Tensor, Tensor]:
    """x_0, x_t and t."""
    generator = torch.Generator().manual_seed(1)
    x_0 = torch.randint(0, V, (n, length), generator=generator)
    is_masked = torch.rand(n, length, generator=generator) < 0.5
    return x_0, torch.where(is_masked, V, x_0), torch.rand(n, generator=generator)


# What sees what


@every_variant
@each("has_clean", [False, True])
def test_no_block_sees_a_later_one_and_all_see_the_earlier_ones(variant: dict[str, Any], has_clean: bool) -> None:
    network, (x_0, x_t, t) = build(variant), given()
    size = network.block_length

    def logits(x_t: Tensor, x_0: Tensor) -> Tensor:
        out: Tensor = network(x_t, t, clean=x_0 if has_clean else None).logits
        return out

    before = logits(x_t, x_0)
    for place in (0, 2, 3, 4, 7, L - 1):
        start = place // size * size
        after = logits(*(x.index_copy(1, torch.tensor([place]), (x[:, [place]] + 1) % V) for x in (x_t, x_0)))
        assert torch.equal(after[:, :start], before[:, :start])
        is_changed = (after - before).abs().amax((0, 2)) > 1e-9
        assert bool(is_changed[start:].all())


def test_an_autoregressive_logit_depends_on_all_tokens_before_it_and_on_no_other() -> None:
    network, (x_0, _, t) = build(), given()
    before = network(x_0, t).logits
    for place in range(L):
        after = network(x_0.index_copy(1, torch.tensor([place]), (x_0[:, [place]] + 1) % V), t).logits
        is_changed = (after - before).abs().amax((0, 2)) > 1e-9
        assert is_changed.tolist() == [False] * (place + 1) + [True] * (L - place - 1)


@every_variant
def test_a_training_pass_is_each_block_after_clean_ones(variant: dict[str, Any]) -> None:
    network, (x_0, x_t, t) = build(variant), given()
    size = network.block_length
    together = network(x_t, t, clean=x_0).logits
    for start in range(0, L, size):
        end = min(start + size, L)
        alone = network(torch.cat([x_0[:, :start], x_t[:, start:end]], 1), t).logits[:, start:]
        torch.testing.assert_close(together[:, start:end], alone)


@each("block_length", [L, L + 5])
@each("has_clean", [False, True])
def test_one_block_of_all_tokens_is_mdlm(block_length: int, has_clean: bool) -> None:
    network, (x_0, x_t, t) = build({"block_length": block_length, "cond_width": 6}), given()
    mdlm = MDLM(V, width=8, depth=2, heads=2, cond_width=6).double().eval()
    mdlm.load_state_dict(network.state_dict())
    clean = x_0 if has_clean else None
    torch.testing.assert_close(network(x_t, t, clean=clean).logits, mdlm(x_t, t).logits)


@each("variant", [{}, {"block_length": 1}])
def test_the_chain_rule_makes_one_distribution_over_all_texts(variant: dict[str, Any]) -> None:
    network = build(variant, vocab_size=3)
    texts = torch.tensor(list(itertools.product(range(3), repeat=4)))
    more = {"clean": texts} if variant else {}
    x_t = torch.full_like(texts, 3) if variant else texts
    log_p = network(x_t, torch.ones(len(texts)), **more).log_prob(texts).sum(1).detach()
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)
    assert float(log_p.std()) > 0.1


@every_network
def test_asking_somewhere_gives_what_asking_everywhere_gives_there(variant: dict[str, Any]) -> None:
    network, (x_0, x_t, t) = build(variant), given()
    where = x_t == V
    more = {"clean": x_0} if variant else {}
    answer = network(x_t, t, where=where, **more)
    torch.testing.assert_close(answer.logits, network(x_t, t, **more).logits[where])
    assert answer.where is where


@every_network
def test_a_new_network_knows_nothing_and_each_parameter_learns(variant: dict[str, Any]) -> None:
    kind, (x_0, x_t, t) = BlockDiffusion if variant else Autoregressive, given()
    assert not kind(V, width=8, depth=1, heads=2, **variant)(x_t, t).logits.any()
    network = build(variant)
    more = {"clean": x_0} if variant else {}
    network(x_t, t, **more).logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_network
def test_bfloat16_is_near_float32(variant: dict[str, Any]) -> None:
    network, (x_0, x_t, t) = build(variant).float().requires_grad_(False), given()
    more = {"clean": x_0} if variant else {}
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x_t, t, **more).logits
    high = network(x_t, t, **more).logits
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), high, atol=0.1 * float(high.std()), rtol=0.1)


@every_network
@each("is_cached", [False, True])
def test_dropped_tokens_are_refused(variant: dict[str, Any], is_cached: bool) -> None:
    network, (_, x_t, t) = build(variant), given()
    subset = TokenSubset.draw(3, L, 0.5, Rng.stream(0))
    with pytest.raises(ValueError, match=r"dropped tokens do not go with .* use keep_ratio 1"):
        (network.cached() if is_cached else network)(x_t, t, subset=subset)


def test_a_block_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="block_length must be at least 1, got 0"):
        BlockDiffusion(V, block_length=0)


# The cache


class Compared:
    """A cached network that is held against the plain one in every call."""

    keeps_rows = True

    def __init__(self, network: Blockwise) -> None:
        self.network, self.cached, self.n_calls = network, network.cached(), 0

    def __call__(self, x_t: Tensor, t: Tensor, cond: Any = None, *, where: Tensor | None = None) -> Categorical:
        fast, plain = (denoiser(x_t, t, where=where) for denoiser in (self.cached, self.network))
        torch.testing.assert_close(fast.logits, plain.logits)
        assert fast.where is where
        self.n_calls += 1
        return fast


# All [MASK]s of an empty block are predicted alike, so a confident order needs noise, or rounding breaks the tie.
SAMPLER_PARTS: dict[str, dict[str, Any]] = {
    "coins": {"order": Random(), "unmasking": Bernoulli(), "steps": 12},
    "confident": {"order": Confidence(2.0), "steps": 8},
    "one": {"order": Random(), "unmasking": One()},
    "remasked": {"order": Random(), "unmasking": Bernoulli(), "remask": Cap(0.3), "steps": 12},
}
LENGTHS = torch.tensor([0, 11, 4, 7, 2, 10])
"""Tokens that are wanted in each row: some rows have finished long before others, some need nothing."""


def holes(seed: str = "holes") -> Tensor:
    """(6, L): tokens with other holes in every row, those of the last two rows at the end."""
    place = Rng.stream(seed).permutation(len(LENGTHS), L)
    place[4:] = torch.arange(L).flip(0)
    tokens = (Rng.stream(seed, 1).uniform((len(LENGTHS), L)) * V).long()
    return torch.where(place < LENGTHS[:, None], V, tokens)


def decode(denoiser: Any, sampler: MaskedSampler, x_1: Tensor, seed: int = 0) -> Tensor:
    denoise = Guidance().bind(denoiser, None)
    return sampler(denoise, x_1, Rng.per_sample([seed + row for row in range(len(x_1))]), mask_id=V)


def sampler_of(parts: str, network: Blockwise) -> MaskedSampler:
    return MaskedSampler(layout=Blocks(network.block_length), **SAMPLER_PARTS[parts])


@each("parts", list(SAMPLER_PARTS))
@every_network
def test_a_cached_decoding_is_the_plain_one_in_every_call_and_token(variant: dict[str, Any], parts: str) -> None:
    network = build(variant)
    sampler, compared = sampler_of(parts, network), Compared(network)
    for x_1 in (holes(), torch.full((6, L), V)):
        x_0 = decode(compared, sampler, x_1)
        assert torch.equal(x_0, decode(network, sampler, x_1))
        assert not bool((x_0 == V).any())
    assert compared.n_calls > 0


@every_network
def test_a_cache_that_is_used_again_forgets_what_no_longer_holds(variant: dict[str, Any]) -> None:
    network = build(variant)
    sampler, compared = sampler_of("coins", network), Compared(network)
    first, second = torch.full((6, L), V), holes("others")
    beginning = first.clone()
    beginning[:, :5] = decode(compared, sampler, first)[:, :5]
    for x_1 in (beginning, second[:2], second):
        assert torch.equal(decode(compared, sampler, x_1, seed=9), decode(network, sampler, x_1, seed=9))


@every_network
def test_a_change_in_one_row_alone_is_noticed(variant: dict[str, Any]) -> None:
    network, (x_0, _, t) = build(variant), given()
    compared, where = Compared(network), torch.arange(L).expand(3, L) == L - 1
    for row, place in itertools.product(range(3), (0, 4, 8)):
        x_0[row, place] = (x_0[row, place] + 1) % V
        compared(torch.where(where, V, x_0), t, where=where)


@every_network
def test_rows_that_are_not_asked_about_are_left_out_of_the_answer_only(variant: dict[str, Any]) -> None:
    network, (x_0, _, t) = build(variant), given()
    compared, size = Compared(network), network.block_length
    for start in (0, size, 2 * size):
        for rows in ([1], [0, 2], [0, 1, 2]):
            where = torch.zeros_like(x_0, dtype=torch.bool)
            where[rows, start : min(start + 2, start + size)] = True
            x_t = torch.where((torch.arange(L) >= start) & where.any(1)[:, None], V, x_0)
            compared(x_t, t, where=where)


@every_network
def test_a_call_about_several_blocks_or_none_is_answered_as_by_the_network(variant: dict[str, Any]) -> None:
    network, (_, x_t, t) = build(variant), given()
    cached = network.cached()
    assert torch.equal(cached(x_t, t).logits, network(x_t, t).logits)
    for where in (x_t == V, torch.zeros_like(x_t, dtype=torch.bool)):
        torch.testing.assert_close(cached(x_t, t, where=where).logits, network(x_t, t, where=where).logits)


def n_computed(network: Blockwise, sampler: MaskedSampler, x_1: Tensor) -> int:
    """Tokens that went through the network in a cached decoding."""
    counted: list[int] = []
    hook = network.embedding.register_forward_hook(lambda _, inputs, __: counted.append(inputs[0].numel()))
    decode(network.cached(), sampler, x_1)
    hook.remove()
    return sum(counted)


def test_an_autoregressive_decoding_computes_each_token_once() -> None:
    network, sampler = build(), SAMPLERS.build("autoregressive")
    assert n_computed(network, sampler, torch.full((3, L), V)) == 3 * L


def test_a_prompt_is_computed_once_and_all_at_once() -> None:
    network, sampler = build(), SAMPLERS.build("autoregressive")
    x_1 = torch.full((3, L), V)
    x_1[:, :6] = 2
    assert n_computed(network, sampler, x_1) == 3 * L


def test_a_finished_block_is_computed_once_more_and_then_kept() -> None:
    network = build({"block_length": 4})
    sampler = MaskedSampler(Random(), One(), layout=Blocks(4))
    # One token a step: 4 + 4 + 3 steps over a block each, and 2 finished blocks.
    assert n_computed(network, sampler, torch.full((1, L), V)) == 4 * 4 + 4 * 4 + 3 * 3 + 2 * 4


def test_a_network_gives_a_cache_of_its_own_each_time() -> None:
    network = build()
    assert isinstance(network.cached(), Cached)
    assert network.cached() is not network.cached()

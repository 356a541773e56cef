"""Laws of the MAGE network."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import NULL, Batch, Condition
from maskgen.core.registry import SpecError
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS
from maskgen.models.mage import Mage
from maskgen.objectives.contrastive import Contrastive
from maskgen.objectives.masked import MaskedTokens, drop_masked
from maskgen.processes import Absorbing
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.schedules import TruncatedNormal
from tests.cases import each

V, GRID, L = 7, (3, 4), 12
SLOT = torch.tensor([V + 1])
"""The row of "no class" of an unconditional network."""


def build(**arguments: Any) -> Mage:
    """A network whose every path matters."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_classes": 3, "width": 8, "depth": 2, "heads": 2, "decoder_depth": 1, "projection": 4}
    network = Mage(V, GRID, **(sizes | arguments)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return network


def given(n: int = 3) -> tuple[Tensor, Tensor, TokenSubset]:
    """Half of the tokens masked at least, half of all dropped."""
    rng = Rng.stream("given")
    noise = rng.uniform((n, L))
    is_masked = noise.argsort(1).argsort(1) < torch.tensor([[6], [8], [12]])[:n]
    tokens = (rng.uniform((n, L)) * V).long().masked_fill(is_masked, V)
    return tokens, torch.full((n,), 0.5), drop_masked(is_masked, noise, 0.5)


def test_there_is_a_logit_for_every_token_and_none_for_the_mask() -> None:
    x_t, t, subset = given()
    assert build()(x_t, t, None).logits.shape == (3, L, V)
    assert build()(x_t, t, None, subset=subset).logits.shape == (3, L, V)


def test_asking_somewhere_gives_what_asking_everywhere_gives_there() -> None:
    network, (x_t, t, subset) = build(), given()
    where = x_t == V
    where[0] = False  # one row asks for nothing
    answer = network(x_t, t, subset=subset, where=where)
    torch.testing.assert_close(answer.logits, network(x_t, t, subset=subset).logits[where])


def test_what_is_dropped_cannot_matter() -> None:
    network, (x_t, t, subset) = build(), given()
    other = torch.where(subset.is_kept(), x_t, 3)
    assert not torch.equal(other, x_t)
    torch.testing.assert_close(network(other, t, subset=subset).logits, network(x_t, t, subset=subset).logits)


def test_a_kept_mask_matters_as_the_encoder_sees_it() -> None:
    network, (x_t, t, _) = build(), given()
    fewer = TokenSubset.of(x_t != V)  # every masked token dropped
    assert not torch.allclose(network(x_t, t, subset=fewer).logits, network(x_t, t).logits, atol=1e-3)


def test_a_row_is_answered_alike_beside_rows_that_keep_more() -> None:
    network, (x_t, t, _) = build(), given()
    noise = Rng.stream("noise").uniform((3, L))
    few = x_t.clone()
    few[0, 1:] = 2  # a row with hardly a mask keeps more than half
    together = drop_masked(few == V, noise, 0.5)
    assert together.valid is not None
    alone = drop_masked(few[1:] == V, noise[1:], 0.5)
    assert alone.valid is None
    expected = network(few[1:], t[1:], subset=alone).logits
    torch.testing.assert_close(network(few, t, subset=together).logits[1:], expected)


def test_every_masked_place_in_the_decoder_holds_the_class_output_and_no_visible_one_does() -> None:
    network, (x_t, t, subset) = build(), given()
    seen: list[Tensor] = []
    network.decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(x_t, t, subset=subset)
    network(x_t, t)
    for x in seen:
        filled = x - network.decoder_positions
        same = torch.isclose(filled[:, 1:], filled[:, :1], atol=1e-5).all(-1)
        assert torch.equal(same, x_t == V)


def test_the_encoder_of_the_published_setting_sees_129_of_257_and_128_to_256_are_masked() -> None:
    torch.manual_seed(0)
    network = Mage(1024, (16, 16), width=8, depth=1, heads=2, decoder_depth=1, table_rows=2025)
    assert network.embedding.num_embeddings == network.head.bias.numel() == 2025
    assert network.positions.shape == network.decoder_positions.shape == (257, 8)
    lengths: list[tuple[int, ...]] = []
    asked: list[Tensor] = []
    network.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(tuple(inputs[0].shape)))
    network.head.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0]))
    task = MaskedTokens(Absorbing(1024, TruncatedNormal()), label_smoothing=0.1)
    x_0 = (Rng.stream("data").uniform((16, 256)) * 1024).long()
    logs = task(network, Batch(x_0), Rng.stream(0), keep_ratio=0.5).logs
    assert lengths == [(16, 129, 8)]
    assert 128 * 16 <= len(asked[0]) == logs["cross_entropy"][1] <= 256 * 16


def test_no_gradient_reaches_the_table_through_the_head() -> None:
    network, (x_t, t, subset) = build(), given()
    x_t = torch.where(x_t == V, V, x_t.clamp(max=4))  # codes 5 and 6 are only predicted
    network(x_t, t, subset=subset).logits.square().sum().backward()
    gradient = network.embedding.weight.grad
    assert gradient is not None
    assert torch.equal((gradient != 0).any(1), torch.isin(torch.arange(V + 2), torch.cat([x_t.unique(), SLOT])))


def test_a_step_of_training_reaches_every_parameter() -> None:
    network = build(condition="token").train()
    rows = (Rng.stream("data").uniform((2, 32, L)) * V).long()
    task = MaskedTokens(Absorbing(V, TruncatedNormal()), label_dropout=0.5, contrastive=Contrastive())
    batch = Batch(rows[0], Condition(torch.arange(32) % 3), view=rows[1])
    task(network, batch, Rng.stream(0), keep_ratio=0.5).value.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        rows_with = (parameter.grad.flatten(1) != 0).any(1) if parameter.ndim > 1 else parameter.grad != 0
        unused = name == "head.bias"  # of [MASK] and of the classes
        assert rows_with[:V].all() if unused else rows_with.any(), name
    assert network.embedding.weight.grad is not None
    assert (network.embedding.weight.grad != 0).any(1).all()


def test_features_are_the_encoder_over_all_tokens_without_the_class_slot_and_without_dropout() -> None:
    network, (x_0, _, _) = build(dropout=0.5), given()
    x_0 = x_0.clamp(max=V - 1)
    expected = network.encoder(network._embed(x_0, None), None)[:, 1:]
    network.train()
    assert torch.equal(network.features(x_0), expected)
    assert network.training
    assert network.encoder.training
    torch.testing.assert_close(network.features(x_0[:1])[0], expected[0])
    network.features(x_0).sum().backward()  # for fine-tuning
    assert network.encoder.blocks[0].attention.qkv.weight.grad is not None  # type: ignore[union-attr]


def test_views_are_compared_by_vectors_of_both_and_the_answer_is_unchanged() -> None:
    network, (x_t, t, subset) = build(), given()
    plain = network(x_t, t, subset=subset)
    assert plain.vectors is None
    paired = network(x_t, t, subset=subset, view=(x_t, subset))
    torch.testing.assert_close(paired.logits, plain.logits)
    assert paired.vectors.shape == (2, 3, 4)
    torch.testing.assert_close(paired.vectors[0], paired.vectors[1])
    with pytest.raises(ValueError, match=r"model.projection 0 has no vectors for a contrastive loss"):
        build(projection=0)(x_t, t, view=(x_t, None))


def test_classes_matter_where_the_slot_holds_them_and_no_class_is_one_more() -> None:
    network, (x_t, t, _) = build(condition="token"), given()
    answers = [network(x_t, t, Condition(torch.full((3,), label))).logits for label in (0, 1, 2, NULL)]
    for one in range(4):
        for other in range(one):
            assert not torch.allclose(answers[one], answers[other])
    assert torch.equal(network(x_t, t).logits, answers[3])
    assert network.embedding.num_embeddings == V + 1 + 3 + 1


def test_an_unconditional_network_heeds_no_class() -> None:
    network, (x_t, t, _) = build(), given()
    assert torch.equal(network(x_t, t, Condition(torch.arange(3))).logits, network(x_t, t).logits)
    assert network.embedding.num_embeddings == V + 2


WHOLE = [name for name in SAMPLERS.names() if SAMPLERS.build(name).lookahead is None]  # the others shorten rows


@each("name, condition", zip(WHOLE, itertools.cycle(["none", "token"]), strict=False))
def test_every_sampler_works_on_it_and_keeps_what_is_known(name: str, condition: str) -> None:
    network = build(condition=condition)
    sampler = SAMPLERS.build(name)
    assert isinstance(sampler, MaskedSampler)
    x_1 = torch.full((4, L), V)
    x_1[1, :5] = 2
    x_1[2] = torch.where(torch.arange(L) % 2 == 0, 4, V)
    cond, guidance = (Condition(torch.arange(4) % 3), 2.0) if condition == "token" else (None, 1.0)
    with torch.no_grad():
        denoise = Guidance(guidance).bind(network, cond)
        x_0 = sampler(denoise, x_1, Rng.per_sample(range(4)), mask_id=V, grid=GRID)
    assert torch.equal(x_0[x_1 != V], x_1[x_1 != V])
    assert ((x_0 >= 0) & (x_0 < V)).all()


@each(
    "arguments, message",
    [
        ({"table_rows": 8}, "table_rows must be at least 9, the rows that are used, or 0, got 8"),
        ({"projection": -1}, "decoder_heads, table_rows and projection must not be negative, got 0, 0 and -1"),
        ({"decoder_heads": 3}, "width must be a multiple of heads"),
        ({"decoder_depth": 0}, "width, depth, heads and mlp_ratio must be positive"),
    ],
)
def test_impossible_sizes_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MODELS.build({"type": "mage", "width": 8, "depth": 1, "heads": 2, **arguments}, vocab_size=V, grid=GRID)

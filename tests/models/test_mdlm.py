"""Laws of the bidirectional text network, over its variants."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS
from maskgen.models.mdlm import MDLM
from maskgen.recipes.load import load_recipe
from tests.cases import each

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "text.json").read_text())
V, L = 7, 12
VARIANTS: list[dict[str, Any]] = [
    {},
    {"cond_width": 6, "has_time": True},
    {"cond_width": 6, "has_mask_row": True},
    {"qk_norm": True, "has_mask_row": True},
    {"has_exponents": True, "mlp_ratio": 1.5, "rotary_base": 100.0},
    {"norm": "rms", "mlp": "swiglu", "mlp_width": 12, "rotary": "half", "head_bias": False, "mask_row": 3},
    {"norm": "rms", "mlp": "geglu", "n_kv_heads": 1, "qkv_bias": True, "head_bias": False, "is_tied": True},
    {
        "norm": "plain", "mlp": "glu", "embedding_width": 4, "cond_width": 6, "has_time": True,
        "time_embedding": "md4",
    },
    {"cond_width": 6, "has_time": True, "time_embedding": "sigma", "has_mask_row": True},
]  # fmt: skip
every_variant = each("variant", VARIANTS)


def build(variant: dict[str, Any] | None = None) -> MDLM:
    """A network in float64 whose every path is open and matters."""
    torch.manual_seed(0)
    network = MDLM(V, **({"width": 8, "depth": 2, "heads": 2} | (variant or {}))).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return network


def given(n: int = 3, length: int = L) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, V + 1, (n, length), generator=generator), torch.rand(n, generator=generator)


@every_variant
def test_there_is_a_logit_for_every_token_and_none_for_the_mask(variant: dict[str, Any]) -> None:
    assert build(variant)(*given()).logits.shape == (3, L, V)


@every_variant
def test_asking_somewhere_gives_what_asking_everywhere_gives_there(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given()
    where = x_t == V
    where[0] = False  # one row asks for nothing
    answer = network(x_t, t, where=where)
    torch.testing.assert_close(answer.logits, network(x_t, t).logits[where])
    assert answer.where is where


@every_variant
def test_rows_do_not_influence_each_other(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given()
    torch.testing.assert_close(network(x_t, t).logits[1:2], network(x_t[1:2], t[1:2]).logits)


@every_variant
def test_every_token_sees_every_other_one_and_its_place(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given(1)
    before = network(x_t, t).logits[0]
    for place in range(L):
        changed = x_t.clone()
        changed[0, place] = (x_t[0, place] + 1) % V
        assert bool((network(changed, t).logits[0] - before).abs().amax(1).gt(1e-6).all())
    turned = network(x_t.roll(1, 1), t).logits[0]
    assert not torch.allclose(turned, before.roll(1, 0), atol=1e-4)


def test_the_rotary_base_says_how_places_turn() -> None:
    x_t, t = given()
    assert not torch.allclose(build()(x_t, t).logits, build({"rotary_base": 20.0})(x_t, t).logits, atol=1e-4)


@every_variant
@each("length", [1, 2, 45])
def test_a_text_may_have_any_length(variant: dict[str, Any], length: int) -> None:
    logits = build(variant)(*given(2, length)).logits
    assert logits.shape == (2, length, V)
    assert bool(logits.isfinite().all())


def test_time_matters_to_a_network_that_has_it_and_to_no_other() -> None:
    for variant in VARIANTS:
        network, (x_t, t) = build(variant), given()
        assert torch.equal(network(x_t, t).logits, network(x_t, 1 - t).logits) is not network.has_time


@every_variant
def test_every_parameter_learns(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given()
    (network(x_t, t).logits.square().sum() + (0 if network.exponents is None else network.exponents.sum())).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_row_of_the_head_for_the_mask_is_never_read() -> None:
    network, (x_t, t) = build({"has_mask_row": True}), given()
    before = network(x_t, t).logits
    with torch.no_grad():
        network.head.weight[V] += 1
        network.head.bias[V] += 1
    assert torch.equal(network(x_t, t).logits, before)


@each("variant", [{}, {"cond_width": 6, "has_mask_row": True}])
def test_a_new_network_knows_nothing(variant: dict[str, Any]) -> None:
    assert not MDLM(V, width=8, depth=2, heads=2, **variant)(*given()).logits.any()


# Dropped tokens


@every_variant
def test_keeping_every_token_is_no_subset(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given()
    everything = TokenSubset(torch.arange(L).expand(3, L), L)
    torch.testing.assert_close(network(x_t, t, subset=everything).logits, network(x_t, t).logits)


def test_keeping_every_token_is_no_subset_under_dropout_either() -> None:
    network, (x_t, t) = build({"dropout": 0.3}).train(), given()
    answers = []
    for subset in (None, TokenSubset(torch.arange(L).expand(3, L), L)):
        torch.manual_seed(3)
        answers.append(network(x_t, t, subset=subset).logits)
    torch.testing.assert_close(*answers)
    assert not torch.allclose(answers[0], network.eval()(x_t, t).logits)


@every_variant
def test_dropped_tokens_have_no_influence(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given()
    subset = TokenSubset.draw(3, L, 0.5, Rng.stream(0))
    kept = subset.is_kept()
    before = network(x_t, t, subset=subset, where=kept).logits
    changed = torch.where(kept, x_t, (x_t + 1) % V)
    assert torch.equal(network(changed, t, subset=subset, where=kept).logits, before)
    assert not torch.equal(network(changed, t, where=kept).logits, network(x_t, t, where=kept).logits)


@every_variant
def test_kept_tokens_are_a_text_of_their_own_with_the_places_they_had(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given()
    subset = TokenSubset.draw(3, L, 0.4, Rng.stream(0))
    logits = subset.gather(network(x_t, t, subset=subset).logits)
    for row, keep in enumerate(subset.keep):
        time = t[row : row + 1]
        alone = network.hidden(x_t[row : row + 1, keep], time, positions=keep)
        torch.testing.assert_close(logits[row : row + 1], network.logits(alone, time, None).logits)


@each("name", ["valid", "documents"])
def test_dropped_tokens_do_not_go_with_visibility(name: str) -> None:
    network, (x_t, t) = build(), given()
    subset = TokenSubset.draw(3, L, 0.5, Rng.stream(0))
    more = {name: torch.ones_like(x_t, dtype=torch.bool if name == "valid" else torch.long)}
    with pytest.raises(ValueError, match="dropped tokens do not go with valid or documents; use keep_ratio 1"):
        network(x_t, t, subset=subset, **more)


# Padding and documents


@every_variant
def test_padding_on_either_side_changes_nothing(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given()
    place, lengths = torch.arange(L), torch.tensor([[12], [5], [1]])
    for valid in (place < lengths, place >= L - lengths):
        logits = network(x_t, t, valid=valid).logits
        assert bool(logits.isfinite().all())
        for row in range(3):
            alone = network(x_t[row, valid[row]][None], t[row : row + 1]).logits[0]
            torch.testing.assert_close(logits[row, valid[row]], alone, atol=1e-5, rtol=1e-5)


def test_a_row_of_nothing_but_padding_is_finite() -> None:
    x_t, t = given()
    assert bool(build()(x_t, t, valid=torch.zeros_like(x_t, dtype=torch.bool)).logits.isfinite().all())


DOCUMENTS = torch.tensor([[0] * 12, [0] * 4 + [1] * 8, [0] + [1] * 6 + [2] * 5])


@every_variant
def test_documents_packed_into_a_row_are_documents_apart(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant), given()
    logits = network(x_t, t, documents=DOCUMENTS).logits
    for row, number in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)):
        own = DOCUMENTS[row] == number
        alone = network(x_t[row, own][None], t[row : row + 1]).logits[0]
        torch.testing.assert_close(logits[row, own], alone, atol=1e-5, rtol=1e-5)


def test_what_another_document_says_is_not_seen() -> None:
    network, (x_t, t) = build(), given()
    changed = torch.where(DOCUMENTS == 1, (x_t + 1) % V, x_t)
    others = DOCUMENTS != 1
    logits = [network(x, t, documents=DOCUMENTS).logits for x in (x_t, changed)]
    assert torch.equal(logits[0][others], logits[1][others])
    assert not torch.equal(logits[0][~others], logits[1][~others])


def test_padding_of_a_document_is_not_seen_in_it() -> None:
    network, (x_t, t) = build(), given()
    valid = torch.arange(L) < torch.tensor([[12], [9], [10]])
    logits = network(x_t, t, valid=valid, documents=DOCUMENTS).logits
    both = torch.where(valid, DOCUMENTS, 9)
    torch.testing.assert_close(logits[valid], network(x_t, t, documents=both).logits[valid])


# Precision, rates, sizes


@every_variant
def test_bfloat16_is_near_float32(variant: dict[str, Any]) -> None:
    network, (x_t, t) = build(variant).float(), given()
    network.requires_grad_(False)
    for parameter in network.parameters():
        parameter.mul_(0.5)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(x_t, t, where=x_t == V).logits
    high = network(x_t, t, where=x_t == V).logits
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), high, atol=0.1 * float(high.std()), rtol=0.1)


def test_rates_are_one_at_the_start_positive_always_and_there_only_if_asked_for() -> None:
    network = MDLM(V, width=8, depth=1, heads=2, has_exponents=True)
    assert network.exponents is not None
    torch.testing.assert_close(network.exponents, torch.ones(V))
    with torch.no_grad():
        network.raw_exponents.fill_(-20)
    assert bool((network.exponents > 0).all())
    assert MDLM(V, width=8, depth=1, heads=2).exponents is None


@each(
    "variant, message",
    [
        ({"width": 0}, "must be positive.* got 0, 2, 2"),
        ({"dropout": 1.0}, r"dropout in \[0, 1\).* 1.0 and 0"),
        ({"mlp_ratio": math.nan}, "mlp_ratio must be positive"),
        ({"cond_width": -1}, "cond_width at least 0.* and -1"),
        ({"has_time": True}, "has_time needs cond_width above 0"),
        ({"rotary_base": 1.0}, "rotary_base must be above 1, got 1.0"),
        ({"heads": 3}, "multiple of heads, both positive, got width 8 and heads 3"),
    ],
)
def test_sizes_that_cannot_be_are_refused(variant: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(variant)


@each(
    "name, sizes",
    [
        ("mdlm_tiny", {"width": 512, "depth": 8, "heads": 8}),
        ("mdlm_small", {"width": 768, "depth": 12, "heads": 12}),
        ("mdlm_medium", {"width": 1024, "depth": 24, "heads": 16}),
    ],
)
def test_the_published_networks_have_their_parameters(name: str, sizes: dict[str, Any]) -> None:
    spec = {"type": "mdlm", "cond_width": 128, "has_mask_row": True, **sizes}
    with torch.device("meta"):
        network = MODELS.build(spec, vocab_size=50_257)
    assert sum(parameter.numel() for parameter in network.parameters()) == GOLDEN["params"][name]


def test_dropout_of_embeddings_and_attention_weights_can_be_set_apart() -> None:
    sizes: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2}
    apart = MDLM(7, dropout=0.5, embedding_dropout=0.0, attention_dropout=0.0, **sizes)
    ids = torch.arange(6)[None]
    probe = apart.blocks[0].get_submodule("attention")
    assert apart.settings.embedding_dropout == 0
    assert (probe.settings.dropout, probe.settings.weight_dropout) == (0.5, 0.0)
    none, default = MDLM(7, dropout=0.0, **sizes), MDLM(7, dropout=0.5, **sizes)
    assert default.settings.embedding_dropout is None
    default.load_state_dict(none.state_dict())
    assert default.eval()(ids, torch.zeros(1)).logits.equal(none.eval()(ids, torch.zeros(1)).logits)
    with pytest.raises(ValueError, match="attention_dropout must be in"):
        MDLM(7, attention_dropout=1.0, **sizes)


def test_a_mask_row_is_the_embedding_of_the_mask_and_is_never_predicted() -> None:
    network, (x_t, t) = build({"mask_row": 3}), given()
    assert network.embedding.num_embeddings == V
    answer = network(x_t, t)
    assert answer.logits.softmax(-1)[..., 3].max() == 0
    assert torch.equal(answer.logits, network(torch.where(x_t == V, 3, x_t), t).logits)
    answer.log_prob(torch.zeros_like(x_t)).sum().backward()
    with pytest.raises(ValueError, match="mask_row must be below the vocabulary's 7, got 7"):
        MDLM(V, mask_row=V)


def test_a_shifted_network_predicts_a_token_from_the_place_before_it() -> None:
    plain, shifted, (x_t, t) = build(), build({"is_shifted": True}), given()
    straight, moved = plain(x_t, t).logits, shifted(x_t, t).logits
    assert torch.equal(moved[:, 1:], straight[:, :-1])
    assert torch.equal(moved[:, 0], straight[:, 0])
    assert not shifted.traits.drops_tokens


def test_a_network_told_sigma_is_one_told_the_time_of_that_noise() -> None:
    variant = {"cond_width": 6, "has_time": True}
    network, told = build(variant), build(variant | {"time_embedding": "sigma"})
    x_t, t = given()
    sigma = -torch.log1p(-0.999 * t)
    torch.testing.assert_close(told(x_t, t).logits, network(x_t, sigma / 1000).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "n", "size"), [("llada-8b", 8_015_581_184, 126_464), ("dream-7b", 7_615_616_512, 152_064)]
)
def test_the_published_language_models_have_their_parameters(name: str, n: int, size: int) -> None:
    recipe = load_recipe(f"text/{name}")
    assert isinstance(recipe.tokenizer, dict)
    assert recipe.tokenizer["vocab_size"] == size
    with torch.device("meta"):
        network = recipe.build_model(vocab_size=size)
    assert sum(parameter.numel() for parameter in network.parameters()) == n

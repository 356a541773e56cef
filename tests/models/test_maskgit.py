"""Laws of the MaskGIT network, over its variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from maskgen.core.predictions import NULL, Condition
from maskgen.core.registry import SpecError
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS
from maskgen.models.maskgit import MaskGIT
from maskgen.nn.mixers.rotary import rotation_1d, rotation_released
from maskgen.nn.patching import TokenPatches
from tests.cases import each

V, GRID, L = 7, (3, 4), 12
VARIANTS: list[dict[str, Any]] = [
    {},
    {"positions": "rotary", "qk_norm": True, "tied": False},
    {"condition": "token"},
    {"condition": "token", "positions": "rotary"},
    {"condition": "token", "norm": "post"},
    {"norm": "rms", "head": "linear", "qk_norm": True, "registers": 2},
    {"norm": "rms", "head": "linear", "condition": "token", "positions": "raster", "tied": False},
    {"n_classes": 0},
]
every_variant = each("variant", VARIANTS)


def build(variant: dict[str, Any]) -> MaskGIT:
    """A network whose every path is open and matters."""
    torch.manual_seed(0)
    sizes = {"grid": GRID, "n_classes": 3, "width": 8, "depth": 2, "heads": 2}
    network = MaskGIT(V, **(sizes | variant)).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return network


def given(n: int = 3) -> tuple[torch.Tensor, torch.Tensor, Condition]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randint(0, V + 1, (n, L), generator=generator)
    return x_t, torch.rand(n, generator=generator), Condition(torch.arange(n) % 3)


@every_variant
def test_there_is_a_logit_for_every_token_and_none_for_the_mask(variant: dict[str, Any]) -> None:
    x_t, t, cond = given()
    assert build(variant)(x_t, t, cond).logits.shape == (3, L, V)


@every_variant
def test_asking_somewhere_gives_what_asking_everywhere_gives_there(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(variant), given()
    where = x_t == V
    where[0] = False  # one row asks for nothing
    answer = network(x_t, t, cond, where=where)
    torch.testing.assert_close(answer.logits, network(x_t, t, cond).logits[where])
    assert answer.where is where


@every_variant
def test_keeping_every_token_is_no_subset(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(variant), given()
    everything = TokenSubset(torch.arange(L).expand(3, L), L)
    torch.testing.assert_close(network(x_t, t, cond, subset=everything).logits, network(x_t, t, cond).logits)


@every_variant
def test_dropped_tokens_have_no_influence(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(variant), given()
    subset = TokenSubset.draw(3, L, 0.5, Rng.stream(0))
    kept = subset.is_kept()
    before = network(x_t, t, cond, subset=subset, where=kept).logits
    changed = torch.where(kept, x_t, (x_t + 1) % V)
    assert torch.equal(network(changed, t, cond, subset=subset, where=kept).logits, before)
    assert not torch.equal(network(changed, t, cond, where=kept).logits, network(x_t, t, cond, where=kept).logits)


@every_variant
def test_a_kept_token_keeps_its_place(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(variant), given(1)
    places = [0, 1, 2, 3], [4, 9, 10, 11]
    for keep in places:
        x_t[0, keep] = torch.tensor([1, 2, 3, V])
    first, second = (
        network(x_t, t, cond, subset=TokenSubset(torch.tensor([keep]), L)).logits[0, keep] for keep in places
    )
    assert not torch.allclose(first, second, atol=1e-4)


@every_variant
def test_rows_do_not_influence_each_other(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(variant), given()
    alone = network(x_t[1:2], t[1:2], Condition(cond.labels[1:2])).logits
    torch.testing.assert_close(network(x_t, t, cond).logits[1:2], alone)


@each("variant", VARIANTS[:-1])
def test_labels_matter_and_no_label_is_another_one(variant: dict[str, Any]) -> None:
    network, (x_t, t, _) = build(variant), given(1)
    answers = [network(x_t, t, Condition(torch.tensor([label]))).logits for label in (0, 1, 2, NULL)]
    for index, answer in enumerate(answers):
        for other in answers[:index]:
            assert not torch.allclose(answer, other, atol=1e-4)
    assert torch.equal(network(x_t, t).logits, answers[-1])


def test_an_unconditional_network_looks_at_no_label() -> None:
    network, (x_t, t, cond) = build({"n_classes": 0}), given()
    assert torch.equal(network(x_t, t, cond).logits, network(x_t, t).logits)


def test_adaln_starts_without_looking_at_the_label_or_at_other_tokens() -> None:
    network = MaskGIT(V, GRID, n_classes=3, width=8, depth=2, heads=2).eval()
    x_t, t, cond = given()
    logits = network(x_t, t, cond).logits
    assert torch.equal(logits, network(x_t, t, cond.null()).logits)
    changed = x_t.clone()
    changed[:, 0] = (x_t[:, 0] + 1) % V
    torch.testing.assert_close(network(changed, t, cond).logits[:, 1:], logits[:, 1:])


@each("variant", [{"tied": True}, {"tied": False}, VARIANTS[5] | {"patch": 1}, {"grid": (4, 4), "patch": 2}])
def test_every_parameter_learns(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(variant), given()
    x_t = torch.arange(3 * network.length).reshape(3, -1) % (V + 1)
    network(x_t, t, cond).logits.square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_tied_head_reads_the_embedding_of_codes_only() -> None:
    network, (x_t, t, _) = build({"condition": "token"}), given(1)
    zeros = torch.zeros_like(x_t)
    before = network(zeros, t).logits
    with torch.no_grad():
        network.embedding.weight[V : V + 4] += 1  # [MASK] and the three labels: not in x_t, nor predicted
    assert torch.equal(network(zeros, t).logits, before)


@each(
    "variant, message",
    [
        ({"norm": "post"}, "norm post goes with condition token"),
        ({"norm": "post", "condition": "token", "qk_norm": True}, "without qk_norm"),
        ({"has_null_label": False}, "has_null_label false goes with condition token"),
        ({"heads": 3}, "multiple of heads, got width 8 and heads 3"),
        ({"heads": 4, "positions": "rotary"}, "multiple of 4, got 2"),
        ({"patch": 2}, "divide the grid 3 x 4, got 2"),
        ({"patch": 2, "positions": "rotary"}, "patch needs positions learned"),
    ],
)
def test_variants_that_do_not_go_together_are_refused(variant: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(variant)


def test_the_published_network_has_its_parameters() -> None:
    spec = {"type": "maskgit", "width": 768, "depth": 24, "heads": 16, "norm": "post", "condition": "token"}
    with torch.device("meta"):
        network = MODELS.build(spec | {"has_null_label": False}, vocab_size=1024, grid=(16, 16), n_classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 172_457_193


def test_time_is_a_condition_only_where_it_is_asked_for() -> None:
    x_t, early, late = torch.full((2, 4), 5), torch.full((2,), 0.9), torch.full((2,), 0.1)
    for has_time in (True, False):
        network = MODELS.build(
            {"type": "maskgit", "width": 8, "depth": 1, "heads": 2, "has_time": has_time},
            vocab_size=5, grid=(2, 2), n_classes=0,
        ).eval()  # fmt: skip
        for modulation in getattr(network, "modulations", []):
            torch.nn.init.normal_(modulation.weight)
        assert torch.equal(network(x_t, early).logits, network(x_t, late).logits) != has_time


def test_time_needs_adaln() -> None:
    with pytest.raises(SpecError, match="has_time goes with condition adaln"):
        MODELS.build(
            {"type": "maskgit", "width": 8, "heads": 2, "condition": "token", "has_time": True},
            vocab_size=5, grid=(2, 2), n_classes=3,
        )  # fmt: skip


def test_registers_are_seen_and_predict_nothing() -> None:
    network, (x_t, t, cond) = build({"registers": 2}), given()
    before = network(x_t, t, cond).logits
    assert network.registers is not None
    with torch.no_grad():
        network.registers.add_(1)
    assert before.shape == (3, L, V)
    assert not torch.allclose(network(x_t, t, cond).logits, before)


def test_a_width_that_heads_do_not_divide_leaves_channels_out_of_attention() -> None:
    network = build({"norm": "rms", "width": 10, "heads": 4})  # the small Halton-MaskGIT: 512 channels, 6 heads
    block: Any = network.blocks[0]
    assert block.attention.settings.inner == 8
    assert network(*given()).logits.shape == (3, L, V)


def test_released_angles_silence_the_first_token_and_turn_the_class_last() -> None:
    released, turns = rotation_released(6, 8), rotation_1d(torch.arange(6), 8, 10_000.0)
    assert torch.equal(released[0], turns[5])
    assert not released[1].any()
    assert torch.equal(released[2:], turns[:5])


def test_patches_are_joined_and_split_in_place() -> None:
    patches = TokenPatches(2, 2, (2, 4))
    with torch.no_grad():
        for at, weight in enumerate((patches.joined.weight, patches.parted.weight)):
            weight.zero_()
            for channel in range(2):
                if at == 0:
                    weight[channel, channel] = 0.25  # the mean of a square
                else:
                    weight[4 * channel : 4 * channel + 4, channel] = 1
    x = torch.tensor([0.0, 0, 1, 1, 0, 0, 1, 1])[None, :, None] + torch.tensor([0.0, 10.0])
    torch.testing.assert_close(patches.split(patches.join(x)), x)
    assert patches.n_patches == 2


@pytest.mark.parametrize("place", ["head", "middle", "tail"])
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_class_token_stands_where_it_is_told_and_is_in_no_answer(place: str, positions: str) -> None:
    torch.manual_seed(0)
    spec = {"type": "maskgit", "width": 16, "depth": 2, "heads": 2, "condition": "token", "condition_place": place}
    network: Any = MODELS.build({**spec, "positions": positions}, vocab_size=5, grid=(3, 3), n_classes=2).eval()
    x, cond = torch.arange(9)[None] % 5, Condition(torch.tensor([1]))
    whole = network(x, torch.zeros(1), cond).logits
    assert whole.shape == (1, 9, 5)
    kept = TokenSubset(torch.arange(9)[None], 9)
    torch.testing.assert_close(network(x, torch.zeros(1), cond, subset=kept).logits, whole)
    some = TokenSubset(torch.tensor([[1, 3, 7]]), 9)
    changed = x.clone()
    changed[0, [0, 2, 4, 5, 6, 8]] = 0
    few = (network(one, torch.zeros(1), cond, subset=some).logits[:, [1, 3, 7]] for one in (x, changed))
    torch.testing.assert_close(*few)
    assert network.attention_scores(x, cond).shape == (1, 9)

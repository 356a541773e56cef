"""Laws and published numbers of MicroDiT."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models.microdit import MicroDiT, round_up, spread
from maskgen.models.trunks import DeferredMasking, MaskDiTMasking, NaiveMasking, NoMasking
from maskgen.nn.layers.mlp import GatedMlp
from maskgen.nn.layers.moe import ExpertChoice
from maskgen.nn.mixers.attention import AttentionSettings, QKNorm
from maskgen.nn.mixers.cross_attention import CrossAttention
from maskgen.nn.published_blocks import PLAIN
from maskgen.objectives.denoising import Denoising
from maskgen.processes import Gaussian
from maskgen.schedules import LogNormal
from tests.cases import each

TINY: dict[str, Any] = {"width": 512, "depth": 16, "heads": 16, "masking": DeferredMasking(4)}
PUBLISHED: dict[str, tuple[dict[str, Any], int, float, dict[float, float]]] = {
    "XL, 256": ({}, 256, 123.16, {0.75: 0.790, 0.125: 0.293}),
    "XL, 1024": ({}, 1024, 565.96, {0.25: 0.338}),
    "Tiny, 256": (TINY, 256, 22.52, {0.5: 0.630}),
}
"""Sizes, tokens, GMACs of a forward pass, and its cost at a keep ratio over that: of the public code, counted."""
GRID, L, D, C, S = (4, 4), 16, 6, 5, 3
SMALL: dict[str, Any] = {"width": 16, "depth": 4, "heads": 4, "multiple_of": 8, "n_experts": 4}
SMALL["masking"] = DeferredMasking(2)
VARIANTS: dict[str, dict[str, Any]] = {
    "deferred": {"masking": DeferredMasking(2), "caption_width": C},
    "another width": {"masking": DeferredMasking(3, width=8), "caption_width": C},
    "naive": {"masking": NaiveMasking(), "caption_width": C},
    "classes": {"masking": DeferredMasking(2, width=8), "n_classes": 3},
    "unconditional": {"masking": DeferredMasking(1), "n_experts": 0},
}
every_variant = each("variant", VARIANTS)


def on_meta(grid: tuple[int, int] = (16, 16), **sizes: Any) -> MicroDiT:
    with torch.device("meta"):
        return MicroDiT(16, grid, caption_width=1024, **sizes)


def build(**changes: Any) -> MicroDiT:
    """A small network in float64, every weight of which matters."""
    network = MicroDiT(D, GRID, **SMALL | changes).double().eval()
    rng = Rng.stream("weights")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * rng.normal(parameter.shape))
    return network


def given(n: int = 3) -> tuple[Tensor, Tensor, Condition]:
    rng = Rng.stream("given")
    cond = Condition(torch.arange(n) % 3, rng.normal((n, S, C)).double())
    return rng.normal((n, L, D)).double(), rng.normal((n,)).double(), cond


# Published sizes


@each("sizes, n", [({}, 1_165_442_320), (TINY, 200_692_752)])
def test_the_published_sizes_have_their_parameters(sizes: dict[str, Any], n: int) -> None:
    assert sum(p.numel() for p in on_meta(**sizes).parameters()) == n


def test_a_token_of_the_published_size_uses_its_active_parameters() -> None:
    network = on_meta()
    experts = [part for part in network.modules() if isinstance(part, ExpertChoice)]
    idle = sum((1 - part.capacity / part.n_experts) * (part.expand.numel() + part.contract.numel()) for part in experts)
    assert sum(p.numel() for p in network.parameters()) - idle == pytest.approx(712.5e6, abs=5e4)


def test_widths_grow_over_the_depth_as_published() -> None:
    blocks: Any = on_meta().blocks
    assert [block.attention.settings.inner for block in blocks][:8] == [512, *[640] * 6, 768]
    assert blocks[-1].attention.settings.inner == 1024
    hidden = [
        block.mlp.contract.shape[1] if isinstance(block.mlp, ExpertChoice) else block.mlp.contract.in_features
        for block in blocks
    ]
    assert (hidden[0], hidden[1], hidden[25], hidden[26], hidden[27]) == (512, 768, 3840, 2816, 2816)
    is_mixture = [isinstance(block.mlp, ExpertChoice) for block in blocks]
    assert is_mixture == [at % 2 == 1 and at < 27 for at in range(28)]
    mixer: Any = on_meta().mixer_blocks
    assert [isinstance(block.mlp, GatedMlp) for block in mixer] == [True, False] * 3


def macs(network: MicroDiT, length: int, keep_ratio: float, n_captions: int = 77) -> float:
    """Multiplications of a forward pass of one image, counted."""
    n_kept = round(length * keep_ratio)
    with torch.device("meta"):
        subset = TokenSubset(torch.zeros(1, n_kept, dtype=torch.long), length) if keep_ratio < 1 else None
        cond = Condition(torch.zeros(1), torch.zeros(1, n_captions, 1024))
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, length, 16), torch.zeros(1), cond, subset=subset)
    return counter.get_total_flops() / 2


def dispatch(network: nn.Module, length: int, keep_ratio: float) -> float:
    """What the public code multiplies with one-hot matrices to bring tokens to experts and back: 2 E K L D a layer."""
    total = 0
    for name, part in network.named_modules():
        if isinstance(part, ExpertChoice):
            n = length if name.startswith("mixer") else round(length * keep_ratio)
            total += 2 * part.n_experts * part.n_tokens(n) * n * part.expand.shape[1]
    return total


@pytest.mark.parametrize(("sizes", "length", "giga", "shares"), PUBLISHED.values(), ids=PUBLISHED.keys())
def test_with_the_public_dispatch_added_the_cost_is_the_published_one(
    sizes: dict[str, Any], length: int, giga: float, shares: dict[float, float]
) -> None:
    network = on_meta((math.isqrt(length),) * 2, **sizes)
    cost = {keep: macs(network, length, keep) + dispatch(network, length, keep) for keep in (1.0, *shares)}
    assert cost[1.0] / 1e9 == pytest.approx(giga, abs=6e-3)
    for keep, share in shares.items():
        assert cost[keep] / cost[1.0] == pytest.approx(share, abs=6e-4)


def test_tokens_taken_by_index_save_what_the_dispatch_costs() -> None:
    network = on_meta((32, 32))
    assert macs(network, 1024, 1.0) / 1e9 == pytest.approx(500.46, abs=6e-3)  # of 565.96
    middle: Any = network.blocks[15]
    of_experts = {n: 2 * 8 * middle.mlp.n_tokens(n) * middle.mlp.expand[0].numel() for n in (64, 256, 1024)}
    alone = {n: dispatch(nn.ModuleList([middle.mlp]), n, 1.0) for n in of_experts}
    shares = [alone[n] / (alone[n] + of_experts[n]) for n in of_experts]
    assert shares == pytest.approx([0.024, 0.091, 0.286], abs=6e-4)


@each("ratio, n, ends", [((0.5, 4.0), 8, (0.5, 4.0)), ((0.5, 1.0), 1, (1.0, 1.0))])
def test_ratios_are_spread_evenly_from_the_first_to_the_last(
    ratio: tuple[float, float], n: int, ends: tuple[float, float]
) -> None:
    ratios = torch.tensor(list(spread(ratio, n)), dtype=torch.float64)
    assert (float(ratios[0]), float(ratios[-1])) == ends
    assert bool(torch.allclose(ratios.diff(), ratios.diff()[:1])) if n > 1 else len(ratios) == 1


@each("value, multiple, rounded", [(256.9, 256, 256), (257.0, 256, 512), (1, 8, 8)])
def test_widths_are_rounded_up(value: float, multiple: int, rounded: int) -> None:
    assert round_up(value, multiple) == rounded


# Laws


@every_variant
def test_a_new_network_answers_zero(variant: dict[str, Any]) -> None:
    x_t, t, cond = given()
    assert not MicroDiT(D, GRID, **SMALL | variant).double()(x_t, t, cond).value.any()


@every_variant
@each("keep_ratio", [1.0, 0.5])
def test_every_parameter_learns(variant: dict[str, Any], keep_ratio: float) -> None:
    network, (x_0, _, cond) = build(**variant).float().train(), given()
    cond = Condition(cond.labels, cast(Tensor, cond.captions).float())
    objective = Denoising(Gaussian(LogNormal(-0.6, 1.2), "edm", "exploding", sigma_data=0.9))
    objective(network, Batch(x_0.float(), cond), Rng.stream(0), keep_ratio=keep_ratio).value.backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@every_variant
def test_keeping_every_token_is_the_plain_pass(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(**variant), given()
    everything = TokenSubset.draw(len(x_t), L, 1.0, Rng.stream(0))
    torch.testing.assert_close(network(x_t, t, cond, subset=everything).value, network(x_t, t, cond).value)


@every_variant
def test_a_subset_is_answered_for_and_no_more(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(**variant), given()
    subset = TokenSubset.draw(len(x_t), L, 0.25, Rng.stream(0))
    field = network(x_t, t, cond, subset=subset)
    assert field.value.shape == (3, 4, D)
    assert field.subset is subset


@every_variant
def test_a_row_depends_on_no_other(variant: dict[str, Any]) -> None:
    network, (x_t, t, cond) = build(**variant), given()
    together = network(x_t, t, cond).value
    for row in range(3):
        at = torch.tensor([row])
        torch.testing.assert_close(network(x_t[at], t[at], cond.rows(at)).value, together[at])


def test_kept_tokens_know_of_dropped_ones_by_the_mixer_alone() -> None:
    x_t, t, cond = given()
    subset = TokenSubset.draw(3, L, 0.5, Rng.stream(0))
    changed = torch.where(subset.is_kept()[..., None], x_t, x_t + 1)
    for variant, is_deaf in (("naive", True), ("deferred", False)):
        network = build(**VARIANTS[variant])
        before, after = (network(x, t, cond, subset=subset).value for x in (x_t, changed))
        assert torch.allclose(before, after) == is_deaf


def test_without_masking_the_mixer_and_the_loss_of_it_are_gone() -> None:
    naive, plain = build(masking=NaiveMasking(), caption_width=C), build(masking=NoMasking(), caption_width=C)
    plain.load_state_dict(naive.state_dict())
    x_t, t, cond = given()
    torch.testing.assert_close(plain(x_t, t, cond).value, naive(x_t, t, cond).value)
    with pytest.raises(ValueError, match="masking none drops no tokens"):
        plain(x_t, t, cond, subset=TokenSubset.draw(3, L, 0.5, Rng.stream(0)))


def test_captions_matter_and_none_is_zeros_of_any_length() -> None:
    network, (x_t, t, cond) = build(caption_width=C, masking=DeferredMasking(2)), given()
    without = network(x_t, t, cond.null()).value
    assert not torch.allclose(network(x_t, t, cond).value, without)
    torch.testing.assert_close(network(x_t, t).value, without)
    longer = Condition(cond.labels, torch.zeros(3, 7, C, dtype=torch.float64))
    torch.testing.assert_close(network(x_t, t, longer).value, without)


def test_a_network_of_captions_asks_for_them() -> None:
    x_t, t, cond = given()
    with pytest.raises(ValueError, match="needs captions, the condition has none"):
        build(caption_width=C)(x_t, t, Condition(cond.labels))


def test_classes_condition_where_there_are_no_captions() -> None:
    network, (x_t, t, _) = build(n_classes=3), given()
    first, second = (network(x_t, t, Condition(torch.full((3,), label))).value for label in (0, 1))
    assert not torch.allclose(first, second)
    torch.testing.assert_close(network(x_t, t).value, network(x_t, t, Condition(torch.full((3,), -1))).value)
    assert build(n_classes=3, caption_width=C).labels is None


def test_a_grid_of_twice_the_side_has_its_places_between() -> None:
    network = MicroDiT(D, (16, 16), **SMALL)
    small = network.positions.view(16, 16, -1)
    network.set_grid((32, 32))
    large = network.positions.view(32, 32, -1)
    torch.testing.assert_close(large[::2, ::2], small)
    assert float(large[0, 1, 0]) == pytest.approx(0.479425538604203)
    network.set_grid((16, 16))
    torch.testing.assert_close(network.positions.view(16, 16, -1), small)


def test_what_writes_to_the_tokens_starts_smaller_with_depth() -> None:
    network = MicroDiT(D, GRID, **SMALL | {"width": 64, "depth": 4, "multiple_of": 64})
    for at, block in enumerate(network.blocks):
        expected = 0.02 / (2 * (at + 1)) ** 0.5
        assert float(block.attention.out.weight.std()) == pytest.approx(expected, rel=0.1)
        assert float(block.mlp.contract.std() if at == 1 else block.attention.q.weight.std()) == pytest.approx(
            expected if at == 1 else 0.02, rel=0.1
        )
    for block in network.mixer_blocks:
        assert float(block.attention.out.weight.std()) == pytest.approx(0.02 / 8**0.5, rel=0.1)


def test_queries_and_keys_have_no_scale() -> None:
    torch.manual_seed(0)  # the eps of a norm shows where random weights are small
    settings = AttentionSettings(8, 3, head_width=4, qk_norm=QKNorm(PLAIN, over="width"), qkv_bias=False)
    layer, x = CrossAttention(settings, 8).double(), given()[0][..., :1].expand(-1, -1, 8)
    context = Rng.stream("context").normal((3, 5, 8)).double()
    before = layer(x, context)
    with torch.no_grad():
        layer.q.weight.mul_(7)
        layer.kv.weight[:12].mul_(3)
    torch.testing.assert_close(layer(x, context), before, atol=1e-4, rtol=1e-4)


def test_the_loss_on_kept_tokens_is_that_of_their_pixels() -> None:
    process, (x_0, _, cond) = Gaussian(LogNormal(-0.6, 1.2), "edm", "exploding", sigma_data=0.9), given()
    network, t, noise = (
        build(caption_width=C),
        torch.tensor([0.2, 0.5, 0.8]),
        Rng.stream("n").normal(x_0.shape).double(),
    )
    subset, x_t, c = TokenSubset.draw(3, L, 0.25, Rng.stream(0)), process.corrupt(x_0, t, noise), process.scalings(t)
    answer = network(c.c_in[:, None, None] * x_t, c.c_noise, cond, subset=subset).value
    in_tokens = (answer - subset.gather(process.output_target(x_0, noise, t))).square().mean((1, 2))
    denoised = c.c_skip[:, None, None] * subset.gather(x_t) + c.c_out[:, None, None] * answer
    in_pixels = (denoised - subset.gather(x_0)).square().mean((1, 2)) / c.c_out.square()
    torch.testing.assert_close(in_tokens, in_pixels)


def test_positions_at_512_pixels_go_from_0_to_15_and_a_half() -> None:
    sizes: dict[str, Any] = {"width": 64, "depth": 1, "heads": 1, "masking": NoMasking(), "n_experts": 0}
    small = MicroDiT(16, (16, 16), **sizes).positions.view(16, 16, 64)
    large = MicroDiT(16, (32, 32), position_spacing=0.5, **sizes)
    assert torch.equal(large.positions.view(32, 32, 64)[::2, ::2], small)
    last = large.positions.view(32, 32, 64)[0, 31]  # sines of the column are first, of frequency 1
    assert float(last[0]) == pytest.approx(math.sin(15.5), abs=1e-6)
    large.set_grid((16, 16))
    assert torch.equal(large.positions.view(16, 16, 64), small)


@each(
    "changes, message",
    [
        ({"masking": MaskDiTMasking()}, "microdit takes none, naive or deferred"),
        ({"heads": 3}, "width a multiple of heads, got 16, 4, 3"),
        ({"masking": DeferredMasking(2, width=6)}, "must be a multiple of 4, a head's, got 6"),
        ({"mlp_ratio": (0.0, 4.0)}, "mlp_ratio and mixer_ratio must be positive"),
        ({"capacity": 9.0}, r"capacity must be in \(0, 4\]"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MicroDiT(D, GRID, **SMALL | changes)

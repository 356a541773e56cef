"""Laws of masked autoencoders: what the encoder cannot see, what each decoder looks at, sizes and costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.errors import UserError
from maskgen.core.predictions import Batch, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS, change_grid
from maskgen.nn.embeddings import sincos_2d
from maskgen.nn.encoders import EncoderStates
from maskgen.objectives import MaskedDenoising, MaskedRegression
from maskgen.processes import Absorbing, Gaussian
from maskgen.recipes.cost import Subject, count
from maskgen.schedules import Betas, Fixed
from tests.cases import each

WIDTH, GRID, N = 6, (4, 4), 3
SMALL = {"width": 16, "depth": 2, "heads": 2}
DECODERS: dict[str, dict[str, Any]] = {
    "joint": {"type": "joint", **SMALL},
    "cross": {"type": "cross", **SMALL},
    "cross, last": {"type": "cross", "reads": "last", **SMALL},
    "cross_self": {"type": "cross_self", **SMALL},
    "cross_self, weighted": {"type": "cross_self", "reads": "weighted", **SMALL},
}
MAES: dict[str, dict[str, Any]] = {
    **{name: {"decoder": spec} for name, spec in DECODERS.items()},
    "SimMIM": {"encoder_sees": "all", "decoder": "linear"},
    "all, joint": {"encoder_sees": "all", "decoder": DECODERS["joint"]},
}
every_mae = each("switches", MAES)
every_decoder = each("decoder", DECODERS)

x_0 = Rng.stream("x").normal((N, 16, WIDTH))
t = torch.full((N,), 0.5)
is_masked = torch.zeros(N, 16, dtype=torch.bool)
is_masked[0, :12] = is_masked[1, 4:] = is_masked[2, ::2] = True
x_t = x_0.masked_fill(is_masked[..., None], torch.nan)


def mae(**switches: Any) -> Any:
    torch.manual_seed(0)
    return MODELS.build({"type": "mae", **SMALL, **switches}, token_width=WIDTH, grid=GRID).eval()


def diffmae(decoder: Any = DECODERS["cross_self"]) -> Any:
    torch.manual_seed(0)
    return MODELS.build({"type": "diffmae", **SMALL, "decoder": decoder}, token_width=WIDTH, grid=GRID).eval()


def answer(network: Any, x: Tensor, where: Tensor | None = None) -> Tensor:
    value: Tensor = network(x, t[: len(x)], where=where).value
    return value


@every_mae
def test_a_masked_patch_is_answered_for_packed_in_order(switches: dict[str, Any]) -> None:
    network = mae(**switches)
    whole = answer(network, x_t)
    assert whole.shape == (int(is_masked.sum()), WIDTH)
    some = is_masked & (torch.arange(16) % 3 == 0)
    assert torch.allclose(answer(network, x_t, some), whole[some[is_masked]], atol=1e-5)


@every_mae
def test_a_row_is_completed_alike_beside_rows_that_see_more(switches: dict[str, Any]) -> None:
    network = mae(**switches)
    alone = torch.cat([answer(network, x_t[row : row + 1]) for row in range(N)])
    assert torch.allclose(answer(network, x_t), alone, atol=1e-5)


@every_mae
def test_a_known_number_of_visible_patches_changes_nothing(switches: dict[str, Any]) -> None:
    network, rows = mae(**switches), x_t[:2]
    visible = TokenSubset.of(~is_masked[:2], 4)
    assert torch.allclose(network(rows, t[:2], subset=visible).value, answer(network, rows), atol=1e-6)


@every_mae
def test_what_is_visible_matters_and_where_it_is(switches: dict[str, Any]) -> None:
    network = mae(**switches)
    moved = x_t[:1, [*range(12), 13, 12, 14, 15]]
    assert not torch.allclose(answer(network, x_t[:1]), answer(network, moved), atol=1e-4)
    assert not torch.allclose(answer(network, x_t[:1]), answer(network, x_t[:1] + 1), atol=1e-4)


def test_the_encoder_sees_visible_patches_only_or_all() -> None:
    seen: list[int] = []
    for switches in (MAES["joint"], MAES["SimMIM"]):
        network = mae(**switches)
        network.encoder.blocks[0].register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
        answer(network, x_t[:2])
    assert seen == [1 + 4, 1 + 16]


@each("kind", ["mae", "diffmae"])
def test_features_are_those_of_an_encoder_to_which_all_is_visible(kind: str) -> None:
    network = mae() if kind == "mae" else diffmae()
    everything = TokenSubset.of(torch.ones(N, 16, dtype=torch.bool))
    found = network.features(x_0)
    assert found.shape == (N, 16, SMALL["width"])
    kept = network._encode(network.embedding(x_0), everything).output[:, 1:]
    assert torch.allclose(found, kept, atol=1e-6)


def test_masked_patches_of_a_cross_decoder_do_not_look_at_each_other() -> None:
    """The answer for one is the same whether others are asked for or not; a joint decoder has them all anyway."""
    for name, is_independent in (("cross", True), ("cross_self", False)):
        network = mae(decoder=DECODERS[name])
        visible = TokenSubset.of(~is_masked[:1])
        one = network(x_t[:1], t[:1], targets=TokenSubset(torch.tensor([[5]]), 16), subset=visible).value
        assert torch.allclose(one, answer(network, x_t[:1])[5:6], atol=1e-5) is is_independent


def test_what_a_decoder_reads_of_the_encoder() -> None:
    maps = [torch.full((1, 5, 16), float(at)) for at in (5, 0, 1)]  # the input, two blocks
    states = EncoderStates(maps, torch.full((1, 5, 16), 9.0))
    decoders = {
        name: mae(
            decoder={**DECODERS["cross"], "reads": name.removesuffix("+input"), "reads_input": "+" in name}
        ).decoder
        for name in ("last", "reversed", "weighted", "weighted+input")
    }
    for decoder in decoders.values():
        decoder.init_mixing()
    reads = {name: [memory[0, 0, 0].item() for memory in d._memories(states)] for name, d in decoders.items()}
    assert reads["last"] == [9, 9]
    assert reads["reversed"] == [9, 0]
    for name, values in (("weighted", (0.0, 1.0)), ("weighted+input", (5.0, 0.0, 1.0))):  # the last not normalised
        assert reads[name] == pytest.approx((decoders[name].mixing @ torch.tensor(values)).tolist(), abs=1e-6)
    assert decoders["weighted+input"].mixing.shape == (2, 3)


def test_every_parameter_of_crossmae_has_a_gradient() -> None:
    network = mae(decoder=DECODERS["cross"])
    x_t = torch.randn(2, 16, WIDTH, generator=torch.Generator().manual_seed(0))
    x_t[:, 5:] = torch.nan
    network(x_t, torch.ones(2)).value.square().sum().backward()
    idle = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert idle == set()  # the encoder's norm, which its decoder does not read, has no weights


@each("kind", ["mae", "diffmae"])
def test_positions_are_fixed_sines_with_nothing_for_the_class_slot(kind: str) -> None:
    network = mae() if kind == "mae" else diffmae()
    assert not network.positions[0].any()
    assert torch.equal(network.positions[1:], sincos_2d(GRID, 16))
    assert "positions" not in network.state_dict()


@each("kind", ["mae", "diffmae"])
def test_another_grid_keeps_the_parameters_and_spreads_the_positions(kind: str) -> None:
    network = mae() if kind == "mae" else diffmae()
    change_grid(network, (8, 8))
    assert network.features(torch.zeros(1, 64, WIDTH)).shape == (1, 64, 16)
    assert torch.equal(network.positions[1 + 2 * 8 + 2], sincos_2d(GRID, 16)[4 + 1])  # (2, 2) of 8 is (1, 1) of 4


@each(
    "switches, message",
    [
        ({"encoder_sees": "all", "decoder": "cross"}, "goes with decoder linear or joint"),
        ({"decoder": "linear"}, r"input includes \[MASK\]s: set encoder_sees all"),
        ({"decoder": {"type": "cross_self", "depth": 3}}, "depth 3 is more than its 2"),
    ],
)
def test_a_decoder_that_does_not_go_with_the_encoder_is_refused(switches: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mae(**switches)


@every_decoder
def test_noise_where_a_patch_is_visible_changes_nothing(decoder: dict[str, Any]) -> None:
    network, cond = diffmae(decoder), Condition(torch.full((N,), -1), visible=x_t)
    noised = Rng.stream("noise").normal(x_0.shape)
    other = torch.where(is_masked[..., None], noised, 100.0)
    first, second = (network(x, 1000 * t, cond).value for x in (noised, other))
    assert torch.equal(first, second)
    assert torch.equal(first[~is_masked], x_0[~is_masked])  # their own answer


@every_decoder
def test_time_and_noised_patches_matter(decoder: dict[str, Any]) -> None:
    network, cond = diffmae(decoder), Condition(torch.full((N,), -1), visible=x_t)
    noised = Rng.stream("noise").normal(x_0.shape)
    base = network(noised, 1000 * t, cond).value[is_masked]
    for other in (network(noised + 1, 1000 * t, cond), network(noised, 100 * t, cond)):
        assert not torch.allclose(base, other.value[is_masked], atol=1e-4)


@every_decoder
def test_a_row_is_denoised_alike_beside_rows_that_see_more(decoder: dict[str, Any]) -> None:
    network, noised = diffmae(decoder), Rng.stream("noise").normal(x_0.shape)
    labels = torch.full((N,), -1)
    together = network(noised, 1000 * t, Condition(labels, visible=x_t)).value
    for row in range(N):
        one = slice(row, row + 1)
        alone = network(noised[one], 1000 * t[one], Condition(labels[one], visible=x_t[one])).value
        assert torch.allclose(together[one], alone, atol=1e-5)


def test_without_anything_visible_all_is_made() -> None:
    network, noised = diffmae(), Rng.stream("noise").normal(x_0.shape)
    nothing = Condition(torch.full((N,), -1), visible=torch.full_like(x_0, torch.nan))
    value = network(noised, 1000 * t).value
    assert value.isfinite().all()
    assert torch.equal(value, network(noised, 1000 * t, nothing).value)


def cost(network: Any, objective: Any) -> Any:
    return count(Subject(network, objective, (196, 48)))


def sized(kind: str, **switches: Any) -> nn.Module:
    """On the meta device: blocks of ViT-L over 14 x 14 patches."""
    with torch.device("meta"):
        spec = {"type": kind, "width": 1024, "depth": 2, "heads": 16, **switches}
        return MODELS.build(spec, token_width=48, grid=(14, 14))


def regression(**more: Any) -> MaskedRegression:
    return MaskedRegression(Absorbing(0, Fixed(0.75)), **more)


SMALL_DECODER = {"width": 128, "depth": 2, "heads": 2}


@each("kind", ["mae", "diffmae"])
def test_the_encoder_costs_a_quarter_of_the_full_pass_at_75_percent_masking(kind: str) -> None:
    full = cost(sized("mae", encoder_sees="all", decoder="linear"), regression()).stages["encoder"]
    objective: Any = MaskedDenoising(Gaussian(Betas(), "x_0")) if kind == "diffmae" else regression()
    decoder = {"type": "joint", **SMALL_DECODER}
    macs = cost(sized(kind, decoder=decoder), objective).stages
    assert macs["encoder"] / full == pytest.approx(0.25, rel=0.05)


def test_a_third_of_the_masked_patches_costs_a_third_of_their_decoder() -> None:
    network = sized("mae", decoder={"type": "cross", "width": 512, "depth": 2, "heads": 8})
    whole, third = (cost(network, regression(decode_ratio=ratio)).stages for ratio in (1.0, 1 / 3))
    assert third["head"] / whole["head"] == pytest.approx(1 / 3)
    assert third["encoder"] == whole["encoder"]
    assert third["decoder"] < 0.5 * whole["decoder"]  # what the encoder says is projected once, whoever asks


def test_gradients_reach_every_parameter_and_nothing_is_nan() -> None:
    for kind, many in (("mae", MAES), ("diffmae", {name: {"decoder": one} for name, one in DECODERS.items()})):
        for switches in many.values():
            network = mae(**switches) if kind == "mae" else diffmae(switches["decoder"])
            objective: Any = regression() if kind == "mae" else MaskedDenoising(Gaussian(Betas(), "x_0"))
            objective(network.train(), Batch(x_0), Rng.stream(0)).value.backward()
            assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
            assert all(p.grad.isfinite().all() for p in network.parameters())


def test_what_the_class_slot_attends_to_is_a_share_of_its_attention() -> None:
    for network in (mae(), diffmae()):
        scores = network.attention_scores(x_0)
        assert scores.shape == (N, 16)
        assert (scores > 0).all()
        assert (scores.sum(1) < 1).all()  # the slot attends to itself too
        assert not torch.allclose(scores, network.attention_scores(x_0 + 1))


@every_mae
def test_errors_are_expected_of_all_patches_or_of_those_asked_for(switches: dict[str, Any]) -> None:
    network = mae(has_difficulty=True, **switches)
    assert network.difficulty(x_t, t).shape == (N, 16)
    point = network(x_t, t)
    assert point.difficulty.shape == point.value.shape[:1]
    assert mae(**switches)(x_t, t).difficulty is None


@each("switches, gmacs", [({}, 15.38), ({"encoder_sees": "all", "decoder": "linear"}, 61.55)])
def test_the_encoder_of_vit_l_costs_what_is_published(switches: dict[str, Any], gmacs: float) -> None:
    """24 equal blocks, counted as twelve times two; embedding of patches included, which is of all of them."""
    with torch.device("meta"):
        spec = {"type": "mae", "width": 1024, "depth": 2, "heads": 16, **switches}
        network = MODELS.build(spec, token_width=768, grid=(14, 14))
    stages = count(Subject(network, regression(), (196, 768))).stages
    assert (stages["embedding"] + 12 * stages["encoder"]) / 1e9 == pytest.approx(gmacs, abs=0.005)


def test_relative_positions_tell_places_apart_and_nothing_else_does() -> None:
    network = mae(decoder="linear", encoder_sees="all", positions="relative", layer_scale=0.1).eval()
    x = torch.randn(1, 16, WIDTH, generator=torch.Generator().manual_seed(0))
    turned = x.flip(1)  # the grid turned by half a circle: every offset has the opposite sign
    table = network.bias.weight.data
    table[:-3] = (table[:-3] + table[:-3].flip(0)) / 2  # a bias that does not tell them apart
    torch.testing.assert_close(network.features(turned), network.features(x).flip(1), atol=1e-5, rtol=1e-4)
    table[:-3] = torch.randn(table[:-3].shape, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(network.features(turned), network.features(x).flip(1), atol=1e-4)


def test_relative_positions_need_all_patches_of_their_grid() -> None:
    with pytest.raises(ValueError, match="positions relative needs an encoder of all patches"):
        mae(positions="relative")
    network = mae(decoder="linear", encoder_sees="all", positions="relative")
    assert not network.traits.has_attention_scores
    with pytest.raises(UserError, match="relative positions are of a grid"):
        change_grid(network, (8, 8))


def test_a_branch_is_scaled_from_its_start_on() -> None:
    scaled, plain = mae(layer_scale=0.5), mae()
    state = plain.state_dict()
    for name in state:
        if name.startswith("encoder.") and name.endswith(
            ("out.weight", "out.bias", "contract.weight", "contract.bias")
        ):
            state[name] = 2 * state[name]
    scaled.load_state_dict({**scaled.state_dict(), **state})
    x = torch.randn(1, 16, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(scaled.features(x), plain.features(x), atol=1e-5, rtol=1e-4)

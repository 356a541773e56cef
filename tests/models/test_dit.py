"""The DiT and its masking switches: published sizes, and what must coincide."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Condition
from maskgen.core.rng import Rng
from maskgen.core.subset import TokenSubset
from maskgen.models import MODELS
from maskgen.models.dit import DiT
from maskgen.models.trunks import SWITCHES
from maskgen.nn.embeddings import TimeEmbedding, sincos_2d
from tests.cases import each

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())
SMALL: dict[str, dict[str, Any]] = {
    "none": {"type": "none"},
    "naive": {"type": "naive"},
    "deferred": {"type": "deferred", "depth": 1},
    "narrow mixer": {"type": "deferred", "depth": 1, "width": 16, "heads": 2},
    "maskdit": {"type": "maskdit", "depth": 1, "width": 16, "heads": 2},
    "mdt": {"type": "mdt", "version": 1, "depth": 1},
}
every_switch = each("masking", SMALL)
every_dropping_switch = each("masking", list(SMALL.values())[1:])


def network(masking: dict[str, Any], **more: Any) -> DiT:
    """A small DiT in which nothing is zero."""
    torch.manual_seed(0)
    spec = {"type": "dit", "width": 32, "depth": 2, "heads": 4, "masking": masking, **more}
    built: Any = MODELS.build(spec, token_width=6, grid=(4, 4), n_classes=3)
    stir(built)
    return built


def stir(module: nn.Module) -> None:
    for parameter in module.parameters():
        if float(parameter.detach().abs().max()) == 0:
            nn.init.normal_(parameter, std=0.2)


x_t, t = Rng.stream("x").normal((2, 16, 6)), torch.tensor([3.0, 500.0])
cond = Condition(torch.tensor([1, NULL]))


@each(
    "sizes, n",
    [
        ((384, 12, 6), 32_963_360),
        ((768, 12, 12), 130_512_416),
        ((1024, 24, 16), 458_102_816),
        ((1152, 28, 16), 675_129_632),
    ],
)
def test_published_sizes_have_exactly_their_parameters(sizes: tuple[int, int, int], n: int) -> None:
    width, depth, heads = sizes
    with torch.device("meta"):
        built: Any = MODELS.build(
            {"type": "dit", "width": width, "depth": depth, "heads": heads, "has_variance": True},
            token_width=16, grid=(16, 16), n_classes=1000,
        )  # fmt: skip
    assert sum(p.numel() for p in built.parameters()) + built.positions.numel() == n  # positions are counted, if fixed


def test_the_published_maskdit_has_its_parameters_and_a_row_for_no_class() -> None:
    with torch.device("meta"):
        built: Any = MODELS.build(
            {"type": "dit", "width": 1152, "depth": 28, "heads": 16, "masking": "maskdit"},
            token_width=16, grid=(16, 16), n_classes=1000,
        )  # fmt: skip
    fixed = built.positions.numel() + built.trunk.decoder_positions.numel()
    assert sum(p.numel() for p in built.parameters()) + fixed == 730_541_200 + 1152  # theirs is a zero, not a row


@every_switch
def test_the_answer_is_exactly_zero_at_the_start(masking: dict[str, Any]) -> None:
    built = DiT(6, (4, 4), 3, 32, 2, 4, masking=SWITCHES.build(masking), has_variance=True)
    field = built(x_t, t, cond)
    assert field.value.shape == (2, 16, 6)
    assert field.variance is not None
    assert float(field.value.detach().abs().max()) == float(field.variance.detach().abs().max()) == 0


@every_dropping_switch
def test_keeping_every_token_is_the_plain_pass(masking: dict[str, Any]) -> None:
    built, all_kept = network(masking), TokenSubset(torch.arange(16).expand(2, -1), 16)
    assert torch.allclose(built(x_t, t, cond, subset=all_kept).value, built(x_t, t, cond).value, atol=1e-6)


def test_naive_masking_without_dropping_is_dit() -> None:
    plain, naive = network(SMALL["none"]), network(SMALL["naive"])
    naive.load_state_dict(plain.state_dict())
    assert torch.equal(plain(x_t, t, cond).value, naive(x_t, t, cond).value)


def test_a_mixer_that_does_nothing_makes_deferred_masking_naive() -> None:
    deferred, naive = network(SMALL["deferred"]), network(SMALL["naive"])
    weights = {key.replace("trunk.backbone", "trunk"): value for key, value in deferred.state_dict().items()}
    naive.load_state_dict({key: value for key, value in weights.items() if "mixer" not in key})
    for block in deferred.trunk.mixer_blocks:  # type: ignore[union-attr]
        nn.init.zeros_(block.modulation.weight)  # type: ignore[arg-type,union-attr]
        nn.init.zeros_(block.modulation.bias)  # type: ignore[arg-type,union-attr]
    subset = TokenSubset.draw(2, 16, 0.25, Rng.stream(1))
    for some in (None, subset):
        assert torch.allclose(
            deferred(x_t, t, cond, subset=some).value, naive(x_t, t, cond, subset=some).value, atol=1e-6
        )


def test_kept_tokens_know_of_dropped_ones_only_through_the_mixer() -> None:
    subset = TokenSubset(torch.tensor([[0, 5, 9, 12]] * 2), 16)
    other = x_t.clone()
    other[:, 1] += 1  # a dropped token
    for masking, is_told in (("naive", False), ("deferred", True), ("maskdit", False)):
        built = network(SMALL[masking])
        same = torch.equal(built(x_t, t, cond, subset=subset).value, built(other, t, cond, subset=subset).value)
        assert same is not is_told, masking


@every_dropping_switch
def test_which_tokens_are_answered_for_is_said_by_the_field(masking: dict[str, Any]) -> None:
    built, subset = network(masking), TokenSubset.draw(2, 16, 0.25, Rng.stream(1))
    field = built(x_t, t, cond, subset=subset)
    is_all = built.masking.answers_all
    assert field.value.shape == (2, 16 if is_all else 4, 6)
    assert (field.subset is None) is is_all


@every_switch
def test_rows_do_not_see_each_other(masking: dict[str, Any]) -> None:
    built = network(masking).eval()
    together = built(x_t, t, cond).value
    alone = built(x_t[1:], t[1:], Condition(cond.labels[1:])).value
    assert torch.allclose(together[1:], alone, atol=1e-5)


@every_switch
def test_time_class_and_place_all_matter(masking: dict[str, Any]) -> None:
    built = network(masking)
    answer = built(x_t, t, cond).value
    assert not torch.allclose(answer, built(x_t, t + 50, cond).value)
    assert not torch.allclose(answer, built(x_t, t, cond.null()).value)
    assert torch.equal(built(x_t, t, cond.null()).value, built(x_t, t).value)
    shifted = built(x_t.roll(1, 1), t, cond).value.roll(-1, 1)
    assert not torch.allclose(answer, shifted, atol=1e-4)


def test_an_unconditional_network_has_no_label_table() -> None:
    built = DiT(6, (4, 4), 0, 32, 2, 4)
    assert built.labels is None
    assert built(x_t, t).value.shape == x_t.shape


def test_masking_none_refuses_to_drop() -> None:
    with pytest.raises(ValueError, match="masking none drops no tokens"):
        network(SMALL["none"])(x_t, t, cond, subset=TokenSubset.draw(2, 16, 0.5, Rng.stream(0)))


@each("masking", [spec for spec in SMALL.values() if not SWITCHES.build(spec).fixed_grid])
def test_on_a_grid_of_twice_the_side_every_second_token_is_where_it_was(masking: dict[str, Any]) -> None:
    built, rows = network(masking), torch.arange(64).view(8, 8)[::2, ::2].flatten()
    before = built.positions.clone()
    built.set_grid((8, 8))
    assert torch.allclose(built.positions[rows], before, atol=1e-6)
    assert built(Rng.stream(0).normal((2, 64, 6)), t, cond).value.shape == (2, 64, 6)
    built.set_grid((4, 4))
    assert torch.equal(built.positions, before)


def test_learned_positions_stay_on_their_grid() -> None:
    built = network(SMALL["none"], positions="learned")
    built.set_grid((4, 4))
    with pytest.raises(ValueError, match="learned positions are of a grid"):
        built.set_grid((8, 8))


def test_positions_equal_the_published_ones() -> None:
    positions = sincos_2d((16, 16), 384)
    first, other = GOLDEN["sincos D=384 grid16 pos[1][0:2], pos[16][192:194]"]
    assert positions[1, :2].tolist() == pytest.approx(first, rel=1e-6)
    assert positions[16, 192:194].tolist() == pytest.approx(other, rel=1e-6)
    half = sincos_2d((32, 32), 384, (0.5, 0.5))
    assert float(half[1, 0]) == pytest.approx(GOLDEN["micro pos 512 col index 1 -> coordinate 0.5; pos[1][0]=sin(.5)"])
    assert torch.allclose(half[2 * 32 + 2], positions[16 + 1])


def test_times_are_embedded_as_published() -> None:
    waves: list[Tensor] = []
    embedding = TimeEmbedding(8, scale=1.0)
    embedding.mlp[0].register_forward_pre_hook(lambda _, inputs: waves.append(inputs[0]))
    embedding(torch.tensor([1.0, 0.0]))
    assert float(waves[0][0, 0]) == pytest.approx(math.cos(1))
    assert float(waves[0][0, 128]) == pytest.approx(math.sin(1))
    assert waves[0][1, :2].tolist() == [1, 1]


@each("arguments", [{"width": 0}, {"depth": 0}, {"mlp_ratio": 0.0}])
def test_impossible_sizes_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        DiT(6, (4, 4), **{"width": 32, "depth": 1, "heads": 2, **arguments})

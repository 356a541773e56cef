"""Laws of the network of MAR and eMIGM."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.predictions import NULL, Batch, Condition
from maskgen.core.rng import Rng
from maskgen.models import MODELS
from maskgen.objectives import MaskedTokens, TokenDiffusion
from maskgen.processes import Absorbing
from maskgen.samplers import SAMPLERS
from maskgen.samplers.guidance import Guidance
from maskgen.train.ema import Ema
from tests.cases import each

GRID, WIDTH, CLASSES, VOCAB = (3, 3), 4, 5, 7
LABELS = Condition(torch.tensor([0, 3, NULL]))
BOTH = each("encode_visible", [True, False])


def built(**changes: Any) -> Any:
    """A network whose heads and gates are awake."""
    torch.manual_seed(0)
    spec = {"type": "mar", "width": 16, "depth": 1, "heads": 2, "dropout": 0.0, "n_buffer": 2} | changes
    sizes = {"vocab_size": 0, "token_width": WIDTH}
    if spec.get("head") == "categorical":
        sizes = {"vocab_size": VOCAB, "token_width": 0}
    else:
        spec["head"] = {"type": "diffusion", "width": 8, "depth": 1}
    network = MODELS.build(spec, grid=GRID, n_classes=CLASSES, **sizes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def masked(*counts: int) -> Tensor:
    """(B, L, D) with so many [MASK]s a row, in other places each."""
    x = torch.randn(len(counts), GRID[0] * GRID[1], WIDTH, generator=torch.Generator().manual_seed(1))
    for row, count in enumerate(counts):
        x[row, torch.arange(row, row + count) % x.shape[1]] = torch.nan
    return x


def z_of(network: nn.Module, x_t: Tensor, labels: Condition | None = LABELS) -> Tensor:
    z: Tensor = network(x_t, torch.zeros(len(x_t)), labels).z
    return z


@BOTH
def test_what_is_masked_is_not_seen(encode_visible: bool) -> None:
    network, x_t = built(encode_visible=encode_visible), masked(4, 2, 8)
    other = x_t.clone()
    other[..., 0] = torch.where(x_t[..., 0].isnan(), torch.nan, other[..., 0])
    other[..., 1:] = torch.where(x_t[..., 1:].isnan(), 77.0, other[..., 1:])  # one NaN makes a [MASK]
    assert torch.equal(z_of(network, x_t), z_of(network, other))
    assert not z_of(network, x_t).isnan().any()


@BOTH
def test_what_is_visible_is_seen_from_every_masked_place(encode_visible: bool) -> None:
    network, x_t = built(encode_visible=encode_visible), masked(4, 2, 8)
    other = x_t.clone()
    other[:, 8] += 1  # visible in the first two rows, masked in the last
    moved = (z_of(network, x_t) - z_of(network, other)).abs().amax(-1)
    assert (moved[:2] > 1e-5).all()
    assert (moved[2] == 0).all()


@BOTH
def test_a_row_is_answered_alike_whatever_the_others_have_masked(encode_visible: bool) -> None:
    network, x_t = built(encode_visible=encode_visible), masked(9, 5, 1)
    together = z_of(network, x_t)
    for row in range(3):
        alone = z_of(network, x_t[row : row + 1], LABELS.rows(torch.tensor([row])))
        assert torch.allclose(alone[0], together[row], atol=1e-5)


def test_places_asked_for_are_those_of_the_whole_answer() -> None:
    network, x_t = built(), masked(4, 2, 8)
    where = x_t.isnan().any(-1)
    packed = network(x_t, torch.zeros(3), LABELS, where=where)
    assert torch.equal(packed.z, z_of(network, x_t)[where])


def test_no_class_is_a_token_of_its_own_or_the_mask_token() -> None:
    own, shared = built(null_token="own"), built(null_token="mask")
    assert own.null is not None
    assert shared.null is None
    x_t = masked(3, 3, 3)
    for network, token in ((own, own.null), (shared, shared.mask_token)):
        with torch.no_grad():
            network.labels.weight[1] = token
        as_class, as_null = (Condition(torch.full((3,), label)) for label in (1, NULL))
        assert torch.equal(z_of(network, x_t, as_class), z_of(network, x_t, as_null))
        assert torch.equal(z_of(network, x_t, None), z_of(network, x_t, as_null))


def test_the_average_of_a_shared_token_is_one() -> None:
    network = built(null_token="mask")
    ema = Ema(network, 0.5)
    with torch.no_grad():
        for step in range(1, 4):
            network.mask_token.add_(1.0)
            ema.update(step)
    state = ema.state_dict()
    assert [name for name in state if "mask_token" in name or "null" in name] == ["mask_token"]
    with ema.applied() as averaged:
        assert torch.equal(averaged._condition(1, None)[0, 0], state["mask_token"])
    assert not torch.equal(state["mask_token"], network.mask_token)


@BOTH
def test_features_are_of_every_token_and_of_no_class(encode_visible: bool) -> None:
    network, x_0 = built(encode_visible=encode_visible), masked(0, 0, 0)
    found = network.features(x_0)
    assert found.shape == (3, 9, 16)
    other = x_0.clone()
    other[0, 4] += 1
    moved = (network.features(other) - found).abs().amax(-1)
    assert (moved[0] > 0).all()
    assert (moved[1:] == 0).all()


@each("null_token", ["own", "mask"])
@BOTH
def test_the_loss_moves_every_parameter(encode_visible: bool, null_token: str) -> None:
    network = built(encode_visible=encode_visible, null_token=null_token)
    objective = TokenDiffusion(Absorbing(0), label_dropout=0.0)
    x_0 = torch.randn(8, 9, WIDTH, generator=torch.Generator().manual_seed(0))
    labels = Condition(torch.tensor([0, 1, 2, 3, 4, NULL, NULL, NULL]))
    objective(network, Batch(x_0, labels), Rng.stream(0)).value.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_numbers_are_trained_and_decoded_as_maskgits_are() -> None:
    network = built(head="categorical")
    x_0 = torch.arange(18).view(2, 9) % VOCAB
    loss = MaskedTokens(Absorbing(VOCAB))(network, Batch(x_0, LABELS.rows(torch.tensor([0, 1]))), Rng.stream(0))
    loss.value.backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    denoise = Guidance(2.0).bind(network, LABELS)
    x_1 = torch.full((3, 9), VOCAB)
    x_0 = SAMPLERS.build({"type": "maskgit", "steps": 4})(
        denoise, x_1, Rng.per_sample([0, 1, 2]), mask_id=VOCAB, grid=GRID
    )
    assert (x_0 < VOCAB).all()


@each("name", ["mar", "emigm"])
@BOTH
def test_a_sample_depends_on_its_own_seed_only(name: str, encode_visible: bool) -> None:
    network = built(encode_visible=encode_visible)
    sampler = SAMPLERS.build({"type": name, "steps": 4, "head": {"type": "ddpm", "steps": 5}})
    guidance = Guidance(2.0, ramp="revealed")

    def draw(seeds: list[int]) -> Tensor:
        cond = Condition(torch.tensor(seeds) % CLASSES)
        x_1 = torch.full((len(seeds), 9, WIDTH), torch.nan)
        return sampler(guidance.bind(network, cond), x_1, Rng.per_sample(seeds), mask_id=0, grid=GRID)

    together = draw([3, 4, 5, 6])
    assert not together.isnan().any()
    for index, seed in enumerate([3, 4, 5, 6]):
        assert torch.allclose(draw([seed])[0], together[index], atol=1e-3, rtol=1e-3)


def test_known_vectors_stay() -> None:
    network, x_1 = built(), masked(9, 5, 1)
    x_0 = SAMPLERS.build({"type": "emigm", "steps": 3})(
        Guidance().bind(network, LABELS), x_1, Rng.per_sample([0, 1, 2]), mask_id=0
    )
    is_known = ~x_1.isnan()
    assert torch.equal(x_0[is_known], x_1[is_known])
    assert not x_0.isnan().any()


@each("vocab_size, head, words", [(0, "categorical", "diffusion"), (5, "diffusion", "categorical")])
def test_a_head_of_the_other_kind_of_tokens_is_refused(vocab_size: int, head: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MODELS.build({"type": "mar", "head": head}, vocab_size=vocab_size, token_width=4, grid=GRID)


def test_an_encoder_needs_something_to_see() -> None:
    with pytest.raises(ValueError, match="n_buffer"):
        MODELS.build({"type": "mar", "n_buffer": 0}, vocab_size=0, token_width=4, grid=GRID)

"""Laws of hard-patch mining: losses that are expected, and masks that follow them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskgen.core.predictions import Batch, Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.models import MODELS
from maskgen.objectives import MaskedDenoising, MaskedRegression, MaskedTokens
from maskgen.objectives.difficulty import relative_loss
from maskgen.objectives.guides import expected_losses, guide_by
from maskgen.objectives.targets.pixels import Pixels
from maskgen.objectives.token_diffusion import TokenDiffusion
from maskgen.processes import Absorbing, Gaussian
from maskgen.schedules import Fixed, Linear
from maskgen.strategies import STRATEGIES, Attention, Hard

V, GRID, N_CLASSES = 5, (3, 4), 3
IDS = TokenLayout.of(Stream("image", "image", V, GRID))
PATCHES = TokenLayout.of(Stream("image", "image", 0, GRID, 3))


def network(**more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 2, "heads": 2}
    return MODELS.build({"type": "maskgit", **sizes, **more}, vocab_size=V, grid=GRID, n_classes=N_CLASSES)


def batch(n: int = 6) -> Batch:
    x_0 = (Rng.stream("tokens").uniform((n, 12)) * V).long()
    return Batch(x_0, Condition(torch.arange(n) % N_CLASSES))


def test_the_relative_loss_of_a_worked_example() -> None:
    where = torch.tensor([[True, False, True, True], [False, True, False, False]])
    expected, losses = torch.tensor([1.0, 3.0, 2.0, 9.0]), torch.tensor([0.5, 0.1, 0.9, 4.0])
    # Row 0: the first is harder than the second, the third than both; row 1 has one token and no pair.
    pairs = [1.0 - 3.0, 2.0 - 1.0, 2.0 - 3.0]
    loss = relative_loss(expected, losses, where)
    assert loss.value.item() == pytest.approx(sum(math.log1p(math.exp(-ahead)) for ahead in pairs) / 3)
    assert loss.logs["difficulty/pairs right"].tolist() == pytest.approx([1 / 3, 1])


def test_the_relative_loss_sees_the_order_of_losses_only_and_sends_them_no_gradient() -> None:
    where = torch.ones(2, 5, dtype=torch.bool)
    expected = torch.randn(10, requires_grad=True)
    losses = torch.rand(10, requires_grad=True)
    first, second = (relative_loss(expected, x, where).value for x in (losses, losses.exp() * 7))
    assert torch.equal(first, second)
    first.backward()  # type: ignore[no-untyped-call]
    assert losses.grad is None
    assert expected.grad is not None


def test_without_a_pair_the_relative_loss_is_zero_and_has_a_gradient() -> None:
    expected = torch.randn(2, requires_grad=True)
    loss = relative_loss(expected, torch.ones(2), torch.tensor([[True, True, False]]))
    loss.value.backward()  # type: ignore[no-untyped-call]
    assert loss.value.item() == 0
    assert relative_loss(torch.zeros(0), torch.zeros(0), torch.zeros(1, 3, dtype=torch.bool)).value.item() == 0


class Noisy(nn.Module):
    """Tokens at the right of the line are coin tosses, those at the left are always 0; it learns what is hard."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.expected = nn.Parameter(torch.zeros(length))
        self.logits = nn.Parameter(torch.zeros(length, 2))

    def forward(self, x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None, where: Tensor) -> Categorical:
        rows = [part.expand(len(x_t), *part.shape)[where] for part in (self.logits, self.expected)]
        return Categorical(rows[0], where, rows[1])

    def difficulty(self, x_t: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        return self.expected.expand(len(x_t), -1)


@pytest.mark.learned
def test_difficulty_learns_what_is_hard_and_the_masks_go_there_as_training_goes_on() -> None:
    length, model = 12, Noisy(12)
    objective = MaskedTokens(Absorbing(2, Linear(), strategy=Hard()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.2)
    for step in range(30):
        x_0 = (Rng.stream("data", step).uniform((16, length)) < 0.5).long()
        x_0[:, : length // 2] = 0
        optimizer.zero_grad()
        objective(model, Batch(x_0), Rng.stream(step), progress=step / 30).value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert model.expected[length // 2 :].min() > model.expected[: length // 2].max()
    shares = []
    for progress in (0.0, 1.0):
        x_0 = torch.zeros(500, length, dtype=torch.long)
        guide = guide_by(objective.process, model, x_0, None, Rng.stream(0), progress)
        mask = Hard().mask(0.5, 500, (1, length), Rng.stream(0), guide)
        shares.append(mask[:, length // 2 :].double().mean().item())
    assert shares[0] == pytest.approx(0.5, abs=0.05)
    assert shares[1] > 0.65


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {"condition": "token", "norm": "post"},
        {"condition": "token", "positions": "rotary"},
        {"has_time": True, "qk_norm": True},
    ],
    ids=str,
)
def test_the_attention_scores_of_a_row_are_the_rows_own_and_attention(kind: dict[str, Any]) -> None:
    model, given = network(**kind).eval(), batch()
    scores = model.attention_scores(given.x_0, given.cond)
    assert scores.shape == (6, 12)
    assert (scores > 0).all()
    total = scores.sum(1)
    assert bool((total < 1).all()) if model.n_prefix else torch.allclose(total, torch.ones(6))
    alone = model.attention_scores(given.x_0[2:3], Condition(given.cond.labels[2:3]))  # type: ignore[union-attr]
    torch.testing.assert_close(scores[2:3], alone)


def test_attention_weights_are_those_that_attention_uses() -> None:
    block = network().blocks[0].attention
    x = torch.randn(2, 7, 16)
    values = block.qkv(x).chunk(3, -1)[2]
    block.qkv.weight.data[: 2 * 16] = block.qkv.weight.data[:8].repeat(4, 1)  # both heads attend alike
    assert torch.allclose(block(x), block.out(block.weights(x) @ values), atol=1e-6)


def test_a_network_expects_losses_only_if_asked_to_and_is_the_same_otherwise() -> None:
    plain, given = network(), batch()
    expecting = network(has_difficulty=True)
    missing, unexpected = expecting.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.startswith("loss_head") for name in missing)
    assert not unexpected
    where = torch.rand(6, 12) < 0.5
    x_t = given.x_0.masked_fill(where, V)
    t = torch.zeros(6)
    one, other = plain(x_t, t, given.cond, where=where), expecting(x_t, t, given.cond, where=where)
    assert torch.equal(one.logits, other.logits)
    assert one.difficulty is None
    assert other.difficulty.shape == (int(where.sum()),)
    torch.testing.assert_close(expecting.difficulty(x_t, t, given.cond)[where], other.difficulty)


@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_trains_a_network(name: str) -> None:
    objective = MaskedTokens(Absorbing(IDS, Linear(), strategy=STRATEGIES.build(name)))
    model = network(has_difficulty=True)
    loss = objective(model, batch(), Rng.stream(0), progress=0.5)
    loss.value.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss.value)
    assert {"difficulty", "difficulty/pairs right"} <= set(loss.logs)
    assert loss.value.item() == pytest.approx((loss.logs["loss"][0] + loss.logs["difficulty"][0]).item())
    assert all(p.grad is not None for p in model.loss_head.parameters())


def test_asking_leaves_no_gradient_and_nothing_is_asked_by_a_strategy_that_looks_at_nothing() -> None:
    model, given = network(has_difficulty=True), batch()
    assert guide_by(Absorbing(V), None, given.x_0, None, Rng.stream(0)) is None
    for strategy in (Attention(), Hard()):
        process, rng = Absorbing(V, strategy=strategy), Rng.stream(0)
        guide = guide_by(process, model, given.x_0, given.cond, rng, progress=0.25)
        assert torch.equal(rng.uniform((3,)), Rng.stream(0).uniform((3,)))  # what comes after is drawn as without
        assert guide is not None
        assert not guide.scores.requires_grad
        assert guide.progress == 0.25
    assert all(parameter.grad is None for parameter in model.parameters())


class Watch:
    """A network that expects a token's place as its loss, and remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def difficulty(self, x_t: Tensor, t: Tensor, cond: Any = None, **subset: Any) -> Tensor:
        self.seen.append(x_t)
        return torch.arange(x_t.shape[1]).expand(x_t.shape[:2]) + len(self.seen) - 1.5


@pytest.mark.parametrize("name", ["attention", "hard"])
def test_a_network_is_asked_with_nothing_dropped_out_and_trained_with_it(name: str) -> None:
    model = patch_network(dropout=0.5, has_difficulty=True).train()
    process = Absorbing(PATCHES, Fixed(0.75), strategy=STRATEGIES.build(name))
    before = torch.get_rng_state()
    told = [guide_by(process, model, patches().x_0, None, Rng.stream(0)) for _ in range(2)]
    assert told[0] is not None
    assert told[1] is not None
    assert torch.equal(told[0].scores, told[1].scores)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize("process", [Absorbing(V, Linear()), Absorbing(V), Absorbing(V, Fixed(0.5))])
def test_losses_are_asked_of_masked_tokens_and_every_token_is_masked_in_one_of_two_passes(process: Absorbing) -> None:
    watch, x_0 = Watch(), batch().x_0
    expected = expected_losses(watch, process, x_0, None, Rng.stream(0))
    first, second = (x_t == V for x_t in watch.seen)
    assert (first | second).all()
    assert (first.sum(1) == second.sum(1)).all()
    by_hand = torch.arange(12) + 0.5 * (second.double() - first.double())
    torch.testing.assert_close(expected, by_hand)


def test_what_is_never_masked_is_taken_for_average() -> None:
    watch, x_0 = Watch(), batch().x_0
    expected = expected_losses(watch, Absorbing(V, Fixed(0.25)), x_0, None, Rng.stream(0))
    is_asked = (watch.seen[0] == V) | (watch.seen[1] == V)
    assert is_asked.sum(1).tolist() == [6] * 6
    for row, asked in zip(expected, is_asked, strict=True):
        assert row[~asked].tolist() == pytest.approx([row[asked].mean().item()] * 6)


def test_the_bound_refuses_masks_that_are_not_independent() -> None:
    with pytest.raises(ValueError, match="weight elbo needs tokens masked independently: strategy random"):
        MaskedTokens(Absorbing(V, Linear(), "bernoulli", strategy=Hard()), "elbo")


# Patches: MAE and DiffMAE

D = 4


def patches(n: int = 6) -> Batch:
    return Batch(Rng.stream("patches").normal((n, 12, D)))


def patch_network(name: str = "mae", **more: Any) -> Any:
    torch.manual_seed(0)
    decoder = {"type": "joint", "width": 8, "depth": 1, "heads": 2}
    spec = {"type": name, "width": 16, "depth": 2, "heads": 2, "decoder": decoder, **more}
    return MODELS.build(spec, token_width=D, grid=GRID)


KINDS: dict[str, dict[str, Any]] = {
    "mae": {},
    "crossmae": {"decoder": {"type": "cross", "width": 8, "depth": 2, "heads": 2}},
    "simmim": {"decoder": "linear", "encoder_sees": "all"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STRATEGIES.names())
def test_every_strategy_trains_a_masked_autoencoder(kind: str, name: str) -> None:
    process = Absorbing(PATCHES, Fixed(0.75), strategy=STRATEGIES.build(name))
    objective, model = MaskedRegression(process), patch_network(**KINDS[kind], has_difficulty=True)
    loss = objective(model, patches(), Rng.stream(0), progress=0.5)
    loss.value.backward()  # type: ignore[no-untyped-call]
    assert loss.value.item() == pytest.approx((loss.logs["loss"][0] + loss.logs["difficulty"][0]).item())
    assert loss.logs["squared_error"][1] == 6 * 9
    assert all(p.grad is not None and p.grad.any() for p in model.loss_head.out.parameters() if p.ndim == 2)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES.names()) - {"hard"}))
def test_strategies_choose_what_a_denoising_autoencoder_does_not_see(name: str) -> None:
    strategy, model, seen = STRATEGIES.build(name), patch_network("diffmae"), []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[2].visible))
    objective = MaskedDenoising(Gaussian(Linear(), "x_0"), 0.75, strategy, layout=PATCHES)
    objective(model, patches(), Rng.stream(0), progress=0.5).value.backward()  # type: ignore[no-untyped-call]
    is_masked = seen[0].isnan().all(-1)
    assert is_masked.sum(1).tolist() == [9] * 6
    if name == "grid":  # of period 2 to 4, so lines of the grid repeat
        assert len({tuple(row) for row in is_masked.int().tolist()}) > 1
    assert objective.strategy == strategy


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_autoencoder_says_where_it_looks_and_what_it_expects(kind: str) -> None:
    model, given = patch_network(**KINDS[kind], has_difficulty=True).eval(), patches()
    scores = model.attention_scores(given.x_0)
    assert scores.shape == (6, 12)
    assert (scores > 0).all()
    assert (scores.sum(1) < 1).all()  # the slot looks at itself too
    torch.testing.assert_close(model.attention_scores(given.x_0[2:3]), scores[2:3])
    x_t = given.x_0.masked_fill(torch.arange(12)[:, None] % 2 == 0, torch.nan)
    expected, answer = model.difficulty(x_t, torch.ones(6)), model(x_t, torch.ones(6))
    torch.testing.assert_close(expected[:, ::2].flatten(), answer.difficulty)
    assert not expected[:, 1::2].any() or kind == "simmim"


def test_a_masked_autoencoder_is_the_same_with_and_without_expecting_losses() -> None:
    expecting = patch_network(has_difficulty=True)
    plain = patch_network()
    missing, unexpected = plain.load_state_dict(expecting.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith("loss_head") for name in unexpected)
    x_t = patches().x_0.masked_fill(torch.arange(12)[:, None] % 2 == 0, torch.nan)
    one, other = (model(x_t, torch.ones(6)) for model in (plain, expecting))
    assert torch.equal(one.value, other.value)
    assert one.difficulty is None
    assert other.difficulty.shape == (36,)


@pytest.mark.learned
def test_a_masked_autoencoder_learns_which_patches_are_hard() -> None:
    model = patch_network(has_difficulty=True)
    objective = MaskedRegression(Absorbing(PATCHES, Fixed(0.5), strategy=Hard()), target=Pixels())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(60):
        x_0 = Rng.stream("noise", step).normal((32, 12, D))
        x_0[:, :6] *= 0.1  # half of the patches hold next to nothing
        optimizer.zero_grad()
        objective(model, Batch(x_0), Rng.stream(step), progress=step / 60).value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expected = expected_losses(model, objective.process, x_0, None, Rng.stream(0))
    assert (expected[:, 6:, None] > expected[:, None, :6]).double().mean() > 0.9


# MAGE and MAR


def visible_family(name: str) -> tuple[Any, Any, Batch]:
    """Network, the objective by strategy, and a batch."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "dropout": 0.0}
    if name == "mage":
        sizes = {"type": "mage", "decoder_depth": 1, "condition": "token", "projection": 4, **sizes}
        return MODELS.build(sizes, vocab_size=V, grid=GRID, n_classes=N_CLASSES), MaskedTokens, batch()
    head = {"type": "diffusion", "width": 8, "depth": 1}
    sizes = {"type": "mar", "n_buffer": 3, "head": head, **sizes}
    network = MODELS.build(sizes, vocab_size=0, token_width=D, grid=GRID, n_classes=N_CLASSES)
    return network, TokenDiffusion, Batch(patches().x_0, batch().cond)


@pytest.mark.parametrize("kind", ["mage", "mar"])
@pytest.mark.parametrize("name", sorted(set(STRATEGIES.names()) - {"hard"}))
def test_every_strategy_a_network_answers_trains_mage_and_mar(kind: str, name: str) -> None:
    network, make, given = visible_family(kind)
    process = Absorbing(IDS if kind == "mage" else PATCHES, Linear(), strategy=STRATEGIES.build(name))
    loss = make(process)(network, given, Rng.stream(0), progress=0.5)
    loss.value.backward()
    assert torch.isfinite(loss.value)


@pytest.mark.parametrize("kind", ["mage", "mar"])
def test_the_class_slots_of_mage_and_mar_say_where_they_look(kind: str) -> None:
    network, _, given = visible_family(kind)
    scores = network.eval().attention_scores(given.x_0, given.cond)
    assert scores.shape == (6, 12)
    assert (scores > 0).all()
    assert (scores.sum(1) < 1).all()
    other = Condition((given.cond.labels + 1) % N_CLASSES)  # type: ignore[union-attr]
    assert not torch.allclose(network.attention_scores(given.x_0, other), scores)


@pytest.mark.parametrize("name", sorted(set(STRATEGIES.names()) - {"hard"}))
def test_mage_drops_masked_tokens_only_and_half_of_all_by_any_strategy(name: str) -> None:
    network, _, given = visible_family("mage")
    process = Absorbing(IDS, Fixed(0.75), strategy=STRATEGIES.build(name))
    seen: list[Any] = []
    network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs["subset"])), with_kwargs=True
    )
    MaskedTokens(process)(network, given, Rng.stream(0), keep_ratio=0.5)
    x_t, subset = seen[0]
    assert (subset.is_kept() | (x_t == V)).all()
    assert subset.is_kept().sum(1).tolist() == [6] * 6


def test_vectors_of_views_are_no_difficulty() -> None:
    network, _, given = visible_family("mage")
    answer = network(given.x_0, torch.zeros(6), view=(given.x_0, None))
    assert answer.vectors.shape == (2, 6, 4)
    assert answer.difficulty is None

"""Rows of several streams: exact laws with an oracle, and networks that learn numerals beside labels and captions."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import Batch, Categorical, Condition
from maskgen.core.rng import Rng
from maskgen.core.streams import Stream, TokenLayout
from maskgen.objectives import MaskedTokens
from maskgen.processes import Absorbing, StreamDenoiser
from maskgen.recipes.load import parse_recipe
from maskgen.recipes.tree import RecipeError
from maskgen.samplers import SAMPLERS
from maskgen.samplers.guidance import Guidance
from maskgen.schedules import Cosine, Linear
from tests.rows import CAPTION, IMAGE, LABEL, N_TRAIN, classified, numerals, spelled, trained
from tests.tiny import FIELD, VECTORS, tree

TINY = TokenLayout.of(Stream("a", "image", 3, (2,)), Stream("b", "label", 2, (1,)))
LAW = torch.tensor([[[8, 1], [2, 3], [1, 1]], [[1, 4], [6, 2], [3, 1]], [[2, 2], [1, 5], [4, 3]]]).double()
LAW = LAW / LAW.sum()  # (3, 3, 2): both tokens of a, and b
STATES = torch.cartesian_prod(*[torch.arange(size) for size in LAW.shape])  # (S, L)


def oracle(x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None, where: Tensor | None = None) -> Tensor:
    """The exact posterior of LAW as logits (B, L, V), and nonsense at ids of the other stream."""
    rows = TINY.join({"a": STATES[:, :2], "b": STATES[:, 2:]})
    agrees = ((x_t[:, None] == rows) | (x_t[:, None] == TINY.mask_id)).all(2) * LAW.flatten()  # (B, S)
    mass = torch.einsum("bs,slv->blv", agrees, torch.nn.functional.one_hot(rows, TINY.vocab_size).double())
    allowed = TINY.allowed()
    assert allowed is not None
    return torch.where(allowed, mass.clamp(min=1e-30).log(), 7.0)


def drawn(known: dict[str, Tensor], n: int, sampler: str = "first_hitting", guidance: float = 1.0) -> Tensor:
    """(n, L) samples with known tokens, local ids."""
    denoiser = StreamDenoiser(oracle, TINY, ("b",), has_stream_times=True)  # type: ignore[arg-type]
    cond = None if guidance == 1 else Condition(torch.zeros(n, dtype=torch.int64))
    x_1 = TINY.masked(known, n)
    decode: Any = SAMPLERS.build(sampler)
    x_0 = decode(Guidance(guidance).bind(denoiser, cond, mask_id=TINY.mask_id), x_1, Rng.stream("draw"), mask_id=5)
    assert x_0[x_1 != 5].equal(x_1[x_1 != 5])
    return torch.cat(list(TINY.split(x_0).values()), 1)


def assert_law(samples: Tensor, law: Tensor) -> None:
    """Every frequency within 3 standard errors and chi-square within 3 of its own; `law` (3, 3, 2)."""
    n = len(samples)
    count = torch.bincount(samples @ torch.tensor([6, 2, 1]), minlength=18).double()
    p = law.flatten()
    assert count[p == 0].sum() == 0
    count, p = count[p > 0], p[p > 0]
    assert ((count - n * p).abs() <= 3.5 * (n * p * (1 - p)).sqrt()).all()
    chi_square, free = ((count - n * p).square() / (n * p)).sum(), len(p) - 1
    assert chi_square < free + 3 * math.sqrt(2 * free)


def test_all_directions_of_a_row_have_the_exact_law_of_the_oracle() -> None:
    n = 20_000
    assert_law(drawn({}, n), LAW)
    assert_law(
        drawn({"b": torch.tensor([[1]])}, n), torch.stack([torch.zeros(3, 3), LAW[..., 1] / LAW[..., 1].sum()], 2)
    )
    b_given_a = torch.zeros_like(LAW)
    b_given_a[2, 0] = LAW[2, 0] / LAW[2, 0].sum()
    assert_law(drawn({"a": torch.tensor([[2, 0]])}, n), b_given_a)
    rest = torch.zeros_like(LAW)
    rest[:, 1] = LAW[:, 1] / LAW[:, 1].sum()
    assert_law(drawn({"a": torch.tensor([[3, 1]])}, n), rest)  # one token of a stream is known, 3 is its [MASK]


def test_guidance_by_a_stream_is_that_of_the_two_posteriors() -> None:
    scale, given = 2.5, {"b": torch.tensor([[1]]), "a": torch.tensor([[0, 3]])}
    first = LAW[0, :, 1] / LAW[0, :, 1].sum()
    null = LAW[0].sum(1) / LAW[0].sum()
    pushed = first**scale * null ** (1 - scale)
    law = torch.zeros_like(LAW)
    law[0, :, 1] = pushed / pushed.sum()
    assert_law(drawn(given, 20_000, guidance=scale), law)


def test_the_bound_of_the_oracle_is_the_entropy_and_of_uniform_predictions_the_baseline() -> None:
    flat = torch.multinomial(LAW.flatten(), 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    batch = Batch(TINY.join({"a": STATES[flat][:, :2], "b": STATES[flat][:, 2:]}))
    objective = MaskedTokens(Absorbing(TINY, Cosine(), "bernoulli"), weight="elbo")
    entropy = -(LAW.log() * LAW).sum().item() / 3
    assert objective(oracle, batch, Rng.stream(0)).value.item() == pytest.approx(entropy, rel=0.02)  # type: ignore[arg-type]
    assert objective.baseline == pytest.approx((2 * math.log(3) + math.log(2)) / 3)

    def uniform(x_t: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(*x_t.shape, 5)

    for more in ({}, {"ratio_per": "stream"}, {"ratio_per": "stream", "sampling_eps": 1e-3}):
        objective = MaskedTokens(Absorbing(TINY, Linear(), "bernoulli"), weight="elbo", **more)  # type: ignore[arg-type]
        loss = objective(uniform, batch, Rng.stream(0))  # type: ignore[arg-type]
        assert loss.value.item() == pytest.approx(objective.baseline, rel=0.03), more
        by_stream = [loss.logs[f"cross_entropy/{name}"] for name in ("a", "b")]
        assert [float(log[0] / log[1]) for log in by_stream] == pytest.approx([math.log(3), math.log(2)], rel=1e-5)
        assert torch.allclose(sum(by_stream), loss.logs["cross_entropy"])  # type: ignore[arg-type]


def test_times_of_streams_reach_the_network_and_known_streams_are_at_zero() -> None:
    seen = {}

    def network(x_t: Tensor, t: Tensor, cond: Any = None, **_: Any) -> Tensor:
        seen["t"], seen["x_t"] = t, x_t
        return torch.zeros(*x_t.shape, 5)

    objective = MaskedTokens(Absorbing(TINY, Linear(), "bernoulli"), ratio_per="stream")
    objective(network, Batch(torch.tensor([[0, 1, 3]]).repeat(4000, 1)), Rng.stream(0))  # type: ignore[arg-type]
    assert seen["t"].shape == (4000, 2)
    assert torch.corrcoef(seen["t"].T)[0, 1].abs() < 0.05
    is_masked = (seen["x_t"] == 5).double()
    late = seen["t"] > 0.8
    assert is_masked[late[:, 0], :2].mean().item() == pytest.approx(0.9, abs=0.03)
    assert is_masked[late[:, 0], 2].mean().item() == pytest.approx(0.5, abs=0.05)
    denoiser = StreamDenoiser(network, TINY, has_stream_times=True)  # type: ignore[arg-type]
    answer = denoiser(TINY.masked({"b": torch.tensor([[1]])}, 2), torch.tensor([0.5, 0.75]))
    assert seen["t"].tolist() == [[0.5, 0.0], [0.75, 0.0]]
    assert answer.logits.shape == (2, 3, 5)
    assert (answer.log_probs().exp()[:, :2, 3:] == 0).all()
    assert answer.logits.isfinite().all()
    with pytest.raises(ValueError, match="unknown stream 'c'; choose from a, b"):
        StreamDenoiser(network, TINY, ("c",))  # type: ignore[arg-type]


def test_a_dropped_stream_is_masked_wholly_and_costs_nothing_and_weights_multiply() -> None:
    n, rows = 4000, []

    def network(x_t: Tensor, t: Tensor, cond: Any = None, *, subset: Any = None, where: Tensor) -> Categorical:
        rows.append((x_t, where))
        logits = torch.zeros(*x_t.shape, 5).index_fill(2, torch.tensor([3]), 2.0)
        return Categorical(logits[where], where)

    batch = Batch(torch.tensor([[0, 1, 4]]).repeat(n, 1))
    process = Absorbing(TINY, Linear(), "bernoulli")
    MaskedTokens(process, stream_dropout={"b": 0.25})(network, batch, Rng.stream(0))  # type: ignore[arg-type]
    x_t, where = rows[0]
    is_dropped = (x_t[:, 2] == 5) & ~where[:, 2]
    assert is_dropped.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert where[:, :2].equal(x_t[:, :2] == 5)
    MaskedTokens(process, stream_dropout={"a": 0.9, "b": 0.9})(network, batch, Rng.stream(0))  # type: ignore[arg-type]
    x_t, where = rows[1]
    assert ((x_t == 5) & ~where).all(1).sum() == 0, "a row keeps one stream"
    plain, heavy = (
        MaskedTokens(process, stream_weights=weights)(network, batch, Rng.stream(0))  # type: ignore[arg-type]
        for weights in (None, {"b": 4.0})
    )
    sums = {name: plain.logs[f"cross_entropy/{name}"] for name in ("a", "b")}
    count = plain.logs["cross_entropy"][1]
    assert torch.allclose(plain.value, (sums["a"][0] + sums["b"][0]) / count)
    assert torch.allclose(heavy.value, (sums["a"][0] + 4 * sums["b"][0]) / count)
    assert float(sums["b"][0] / sums["b"][1]) == pytest.approx(math.log(1 + math.e**2), rel=1e-5)


def test_smoothing_is_over_the_ids_of_the_stream() -> None:
    def network(x_t: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.tensor([1.0, 2.0, 3.0, 0.5, -1.0]).expand(*x_t.shape, 5)

    batch = Batch(torch.tensor([[0, 1, 4]]).repeat(500, 1))
    loss = MaskedTokens(Absorbing(TINY, Linear()), label_smoothing=0.1)(network, batch, Rng.stream(0))  # type: ignore[arg-type]
    one = torch.nn.functional.cross_entropy(torch.tensor([[0.5, -1.0]]), torch.tensor([1]), label_smoothing=0.1)
    both = torch.tensor([[1.0, 2.0, 3.0]]).repeat(2, 1)
    two = torch.nn.functional.cross_entropy(both, torch.tensor([0, 1]), label_smoothing=0.1, reduction="none")
    assert two.min() - 1e-5 < loss.value or one - 1e-5 < loss.value
    assert min(*two, one) - 1e-5 <= loss.value <= max(*two, one) + 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaskedTokens(Absorbing(TINY), stream_weights={"c": 1.0}), "unknown stream 'c'; choose from a, b"),
        (lambda: MaskedTokens(Absorbing(TINY), stream_weights={"a": -1.0}), "stream_weights must be at least 0"),
        (lambda: MaskedTokens(Absorbing(TINY), stream_dropout={"a": 1.0}), r"stream_dropout.a must be in \[0, 1\)"),
        (lambda: MaskedTokens(Absorbing(4), stream_dropout={"a": 0.1}), "need a row of several streams; leave them"),
    ],
)
def test_a_stream_setting_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_recipes_build_objectives_of_rows_that_they_support() -> None:
    latents = TokenLayout.of(Stream("a", "image", 0, (2, 2), 4), Stream("b", "map", 0, (2, 2), 4))
    assert parse_recipe(tree()).build_objective(TINY).baseline == pytest.approx((2 * math.log(3) + math.log(2)) / 3)
    with pytest.raises(RecipeError, match="objective: denoising supports rows of one stream, got a, b"):
        parse_recipe(tree(FIELD)).build_objective(latents)
    masking: Any = parse_recipe(tree(VECTORS)).build_objective(latents)
    assert masking.process.layout == latents


@pytest.mark.slow
@pytest.mark.learned
@pytest.mark.parametrize("about", [LABEL, CAPTION], ids=lambda stream: stream.name)
def test_numerals_beside_what_they_show_are_learned_in_all_directions(about: Stream) -> None:
    layout = TokenLayout.of(IMAGE, about)
    weights = {about.name: 8.0 if about is LABEL else 3.0}
    objective = MaskedTokens(Absorbing(layout, Linear(), "bernoulli"), ratio_per="stream", stream_weights=weights)
    network = StreamDenoiser(trained(layout, objective, steps=300), layout)
    images, labels = numerals()
    names = labels[:, None] if about is LABEL else spelled(labels)
    sampler: Any = SAMPLERS.build({"type": "ancestral", "steps": 20, "temperature": 0.5})

    def filled(known: dict[str, Tensor], n: int) -> dict[str, Tensor]:
        x_1 = layout.masked(known, n)
        x_0 = sampler(Guidance().bind(network, None), x_1, Rng.per_sample(range(n)), mask_id=layout.mask_id)
        assert x_0[x_1 != layout.mask_id].equal(x_1[x_1 != layout.mask_id])
        return layout.split(x_0)

    held_out = slice(N_TRAIN, len(labels))
    n = len(labels[held_out])
    read = filled({"image": images[held_out]}, n)[about.name].eq(names[held_out]).all(1).float().mean().item()
    drawn_as = classified(filled({about.name: names[:200]}, 200)["image"]).eq(labels[:200]).float().mean().item()
    both = filled({}, 200)
    shown = classified(both["image"])
    agree = (both[about.name] == (shown[:, None] if about is LABEL else spelled(shown))).all(1).float().mean().item()
    n_kinds = len(set(shown.tolist()))
    print(f"{about.name}: read {read:.1%}, drawn {drawn_as:.1%}, both agree {agree:.1%} over {n_kinds} numerals")
    assert read > 0.6
    assert drawn_as > 0.5
    assert agree > 0.35
    assert n_kinds >= 7

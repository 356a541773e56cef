"""The published samplers are the settings they were published with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskgen.core.predictions import NULL, Categorical, Condition
from maskgen.core.registry import SpecError
from maskgen.core.rng import Rng
from maskgen.samplers import SAMPLERS, FieldSampler, MaskedSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.adaptive import EntropyBound, Factor, Threshold
from maskgen.samplers.masked.joint import Joint
from maskgen.samplers.masked.layout import Blocks, Full
from maskgen.samplers.masked.order import Confidence, Entropy, Halton, Margin, Proposal, Random
from maskgen.samplers.masked.remask import Cap, Held, Loop, LowConfidence, Rescale
from maskgen.samplers.masked.source import Sampled
from maskgen.samplers.masked.unmasking import Bernoulli, Euler, Even, One, Scheduled, Share
from maskgen.schedules import Arccos, Cosine, Linear
from tests.toys import MASK, constant, waves

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "image_continuous.json").read_text())


def test_maskgit_is_confidence_with_cosine_counts() -> None:
    assert SAMPLERS.build("maskgit") == MaskedSampler(Confidence(4.5), Scheduled(Cosine()), steps=8)


def test_mage_is_maskgit_with_its_own_settings() -> None:
    as_maskgit = {"type": "maskgit", "steps": 20, "choice_temperature": 6.0}
    assert SAMPLERS.build("mage") == SAMPLERS.build(as_maskgit)


def test_mar_is_random_order_with_cosine_counts_and_a_hundred_steps_a_vector() -> None:
    head = FieldSampler("ddpm", 100, "linspace")
    assert SAMPLERS.build("mar") == MaskedSampler(Random(), Scheduled(Cosine()), steps=64, head=head)


@pytest.mark.parametrize("n", [8, 64, 256])
def test_mar_reveals_as_many_a_step_as_published(n: int) -> None:
    sizes: list[int] = []
    run(SAMPLERS.build({"type": "mar", "steps": n}), lambda before, after: sizes.append(int((before - after)[0])))
    known = {
        8: GOLDEN["mar tokens per step num_iter=8"],
        64: [part for four in GOLDEN["mar tokens per step num_iter=64 first4,last4,sum,zeros"][:2] for part in four],
        256: [1] * 8,
    }[n]
    assert (sizes if n == 8 else sizes[:4] + sizes[-4:]) == known
    assert sum(sizes) == 256
    assert min(sizes) >= 1


@pytest.mark.parametrize("schedule", ["exponential", "cosine"])
def test_emigm_reveals_as_many_a_step_on_average_as_published(schedule: str) -> None:
    known = GOLDEN[f"emigm {schedule[:3] if schedule == 'exponential' else schedule} expected tokens/step n=16"]
    means: list[float] = []
    sampler = SAMPLERS.build({"type": "emigm", "schedule": schedule, "steps": 16})
    run(sampler, lambda before, after: means.append((before - after).double().mean().item()), n_rows=400)
    error = torch.tensor(known).sqrt() / 400**0.5
    assert ((torch.tensor(means) - torch.tensor(known)).abs() < 4 * error).all()


@pytest.mark.parametrize(
    ("steps", "low", "high", "nfe"),
    [(16, 0.1, 0.3, 19), (128, 0.18, 0.6, 181), (128, 0.05, 0.4, 173), (128, 0.3, 0.7, 179), (64, 0.25, 0.5, 80)],
)
def test_emigm_takes_as_many_passes_under_guidance_as_published(steps: int, low: float, high: float, nfe: int) -> None:
    n_steps, n_passes = 0, 0

    def network(x_t: Tensor, t: Tensor, cond: Condition, *, where: Tensor) -> Categorical:
        nonlocal n_steps, n_passes
        is_null = cond.labels == NULL  # a joined batch is the rows once with their class and once without
        n_steps, n_passes = n_steps + 1, n_passes + 1 + bool(is_null.any())
        if bool(is_null.any()):
            (given, again), (first, second) = x_t.chunk(2), is_null.chunk(2)
            assert torch.equal(given, again)
            assert not first.any()
            assert second.all()
        return Categorical(torch.zeros(int(where.sum()), 2), where)

    n_rows = 64  # so that some row asks for something in every step
    denoise = Guidance(4.0, interval=(low, high)).bind(network, Condition(torch.zeros(n_rows, dtype=torch.long)))
    x_1 = torch.full((n_rows, 256), 2)
    SAMPLERS.build({"type": "emigm", "steps": steps})(denoise, x_1, Rng.stream(0), mask_id=2)
    assert (n_steps, n_passes) == (steps, nfe)


def test_mars_guidance_grows_with_what_is_revealed_as_published() -> None:
    guidance, scales = Guidance(3.0, ramp="revealed"), list[float]()

    class Spy(Categorical):
        def guide(self, null: Categorical, scale: Tensor | float) -> Categorical:
            assert isinstance(scale, Tensor)
            scales.append(scale[0].item())
            return super().guide(null, scale)

        def halves(self) -> tuple[Categorical, Categorical]:
            first, second = super().halves()
            return Spy(first.logits, first.where), Spy(second.logits, second.where)

    def network(x_t: Tensor, t: Tensor, cond: Condition | None = None, *, where: Tensor) -> Categorical:
        return Spy(torch.zeros(int(where.sum()), 2), where)

    denoise = guidance.bind(network, Condition(torch.zeros(2, dtype=torch.long)), mask_id=2)
    SAMPLERS.build("mar")(denoise, torch.full((2, 256), 2), Rng.per_sample([0, 1]), mask_id=2)
    known = GOLDEN["mar linear cfg(3.0) num_iter64 at step 0,31,62,63"]
    assert [scales[step] for step in (0, 31, 62, 63)] == pytest.approx(known, abs=1e-6)


def run(sampler: MaskedSampler, look: Callable[[Tensor, Tensor], None], n_rows: int = 1, length: int = 256) -> None:
    """Decode without a network; `look` gets how many (B,) were masked before and after each step."""
    left = [torch.full((n_rows,), length)]

    def on_step(done: int, total: int, x_s: Tensor) -> None:
        left.append((x_s == 2).sum(1))
        look(left[-2], left[-1])

    sampler(constant(2), torch.full((n_rows, length), 2), Rng.stream(0), mask_id=2, on_step=on_step)


def test_halton_is_its_order_with_arccos_counts_of_what_is_revealed() -> None:
    assert SAMPLERS.build("halton") == MaskedSampler(Halton(), Scheduled(Arccos(), "revealed"), steps=32)


def test_ancestral_and_first_hitting_are_the_reverse_process() -> None:
    assert SAMPLERS.build("ancestral") == MaskedSampler(Random(), Bernoulli(Linear()), steps=32)
    sampler = SAMPLERS.build("first_hitting")
    assert (sampler.order, sampler.unmasking) == (Random(), One(Linear()))


def test_ancestral_in_one_stage_and_genmd4_draw_jointly() -> None:
    one = SAMPLERS.build({"type": "ancestral", "stages": 1, "schedule": "cosine"})
    assert one == MaskedSampler(Random(), Joint(Cosine()), steps=32)
    assert SAMPLERS.build("genmd4") == MaskedSampler(Random(), Joint(Linear()), steps=64)


def test_euler_is_ancestral_with_its_own_chance() -> None:
    assert SAMPLERS.build("euler") == MaskedSampler(Random(), Euler(Linear()), steps=64)


def test_remdm_is_ancestral_that_masks_again() -> None:
    remasks = {"cap": Cap(0.008), "rescale": Rescale(0.015), "conf": LowConfidence()}
    for name, remask in remasks.items():
        assert SAMPLERS.build(f"remdm_{name}") == MaskedSampler(
            Random(), Bernoulli(Linear()), remask, steps=64, crossing="exclude"
        )
    loop = MaskedSampler(Random(), Bernoulli(Held(0.55, 0.05, 0.9)), Loop(0.02), steps=64, crossing="exclude")
    assert SAMPLERS.build("remdm_loop") == loop


def test_llada_is_greedy_confidence_with_even_counts() -> None:
    expected = MaskedSampler(Confidence(), Even(), steps=64, temperature=0)
    assert SAMPLERS.build("llada") == expected
    assert SAMPLERS.build({"type": "llada", "block_length": 32}).layout == Blocks(32)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("entropy", Entropy(0.1, is_fading=False, is_tempered=True)),
        ("margin", Margin(0.1, is_fading=False, is_tempered=True)),
        ("confidence", Confidence(0.1, is_fading=False, is_tempered=True, is_log=False)),
    ],
)
def test_dream_has_three_measures_and_noise_that_stays(name: str, order: Entropy | Margin | Confidence) -> None:
    sampler = SAMPLERS.build({"type": "dream", "order": name, "alg_temp": 0.1})
    assert sampler == MaskedSampler(order, Share(Linear(), "floor", 1e-3), steps=64, temperature=0.2, top_p=0.95)


def test_dream_ranks_by_what_it_draws_from_and_origin_is_the_reverse_process() -> None:
    logits = torch.tensor([[[2.0, 1.6, -9.0, -9.0], [1.0, 0.3, 0.3, 0.3]]])
    where = torch.ones(1, 2, dtype=torch.bool)
    prediction = Categorical(logits[where], where)
    tempered = Sampled(0.2, 0.95).tempered(prediction)
    assert tempered.entropy().tolist() == pytest.approx([0.365, 0.258], abs=1e-3)
    given = Proposal(where, 0, 1, (2,), prediction, tempered, torch.zeros(2, dtype=torch.long))
    for is_tempered, first in ((True, 1), (False, 0)):
        sampler = SAMPLERS.build({"type": "dream", "is_tempered": is_tempered})
        assert sampler.order.score(given, Rng.stream(0)).argmax().item() == first
    origin = SAMPLERS.build({"type": "dream", "order": "origin"})
    assert origin == MaskedSampler(Random(), Bernoulli(end=1e-3), steps=64, temperature=0.2, top_p=0.95)


def test_amused_is_maskgit_with_its_own_noise_and_its_inpainting_counts_from_the_known_share() -> None:
    order = Confidence(2.0, starts_full=True)
    assert SAMPLERS.build("amused") == MaskedSampler(order, Scheduled(Cosine()), steps=12)
    left: list[int] = []
    x_1 = torch.zeros(1, 256, dtype=torch.long)
    x_1[0, :100] = 2
    sampler = SAMPLERS.build({"type": "amused", "schedule": "linear"})
    sampler(
        constant(2), x_1, Rng.stream(0), mask_id=2, on_step=lambda done, total, x_s: left.append(int((x_s == 2).sum()))
    )
    assert left == [91, 83, 75, 66, 58, 50, 41, 33, 25, 16, 8, 0]


def test_the_nucleus_of_remdm_excludes_the_token_that_crosses() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()
    expected = {"remdm_cap": [0.625, 0.375, 0, 0], "ancestral": [10 / 19, 6 / 19, 3 / 19, 0]}
    for name, p in expected.items():
        crossing = SAMPLERS.build(name).crossing
        assert Categorical(logits).nucleus(0.9, 1.0, crossing).log_probs().exp()[0].tolist() == pytest.approx(p)
    assert Categorical(logits).nucleus(0.1, 1.0, "exclude").log_probs().exp()[0].tolist() == [1, 0, 0, 0]


def test_fast_dllm_has_a_threshold_or_a_factor() -> None:
    greedy = {"temperature": 0.0, "layout": Blocks(32)}
    assert SAMPLERS.build("fast_dllm") == MaskedSampler(Confidence(), Threshold(0.9), **greedy)
    assert SAMPLERS.build({"type": "fast_dllm", "factor": 2.0}) == MaskedSampler(Confidence(), Factor(2.0), **greedy)
    assert SAMPLERS.build({"type": "fast_dllm", "block_length": None}).layout == Full()
    with pytest.raises(SpecError, match=r"threshold or a factor, got threshold 0.5 and factor 1"):
        SAMPLERS.build({"type": "fast_dllm", "factor": 1.0, "threshold": 0.5})


def test_entropy_bounded_is_ordered_by_entropy() -> None:
    assert SAMPLERS.build("entropy_bounded") == MaskedSampler(Entropy(), EntropyBound(0.1))


def test_autoregressive_goes_from_left_to_right() -> None:
    seen: list[list[int]] = []

    def denoise(x_t: Tensor, t: Tensor, *, where: Tensor) -> Categorical:
        seen.append(where[0].nonzero()[:, 0].tolist())
        return waves(x_t, t, where=where)

    SAMPLERS.build("autoregressive")(denoise, torch.full((2, 5), MASK), Rng.stream(0), mask_id=MASK)
    assert seen == [[place] for place in range(5)]


def test_every_preset_has_a_summary_and_takes_a_temperature_and_a_nucleus() -> None:
    for name in SAMPLERS.names():
        assert SAMPLERS.summary(name)
        sampler = SAMPLERS.build({"type": name, "temperature": 0, "top_p": 0.8})
        assert (sampler.temperature, sampler.top_p) == (0, 0.8)
        assert ("steps" in SAMPLERS.arguments(name)) == sampler.unmasking.uses_steps, name


def test_every_preset_is_reachable_from_the_loop_itself() -> None:
    for name in SAMPLERS.names():
        preset = SAMPLERS.build(name)
        spec = {"type": "masked", **{key: getattr(preset, key) for key in SAMPLERS.arguments("masked")}}
        assert SAMPLERS.build(spec) == preset


def test_the_former_name_of_the_unmasking_schedule_is_accepted() -> None:
    old = {"type": "masked", "quota": {"type": "bernoulli", "asks_after": True}}
    new = {"type": "masked", "unmasking": {"type": "bernoulli", "uses_time_after": True}}
    assert SAMPLERS.build(old) == SAMPLERS.build(new)

"""The published samplers are the settings they were published with."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from maskgen.predictions import Categorical
from maskgen.registry import SpecError
from maskgen.rng import Rng
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.adaptive import EntropyBound, Factor, Threshold
from maskgen.samplers.joint import Joint
from maskgen.samplers.layout import Blocks, Full
from maskgen.samplers.order import Confidence, Entropy, Halton, Margin, Random
from maskgen.samplers.quota import Bernoulli, Euler, Even, One, Scheduled, Share
from maskgen.samplers.remask import Cap, Held, Loop, LowConfidence, Rescale
from maskgen.schedules import Arccos, Cosine, Linear
from tests.toys import MASK, waves


def test_maskgit_is_confidence_with_cosine_counts() -> None:
    assert SAMPLERS.build("maskgit") == MaskedSampler(Confidence(4.5), Scheduled(Cosine()), steps=8)


def test_mage_is_maskgit_with_its_own_settings() -> None:
    as_maskgit = {"type": "maskgit", "steps": 20, "choice_temperature": 6.0}
    assert SAMPLERS.build("mage") == SAMPLERS.build(as_maskgit)


def test_halton_is_its_order_with_arccos_counts_of_what_is_revealed() -> None:
    assert SAMPLERS.build("halton") == MaskedSampler(Halton(), Scheduled(Arccos(), "revealed"), steps=32)


def test_ancestral_and_first_hitting_are_the_reverse_process() -> None:
    assert SAMPLERS.build("ancestral") == MaskedSampler(Random(), Bernoulli(Linear()), steps=32)
    sampler = SAMPLERS.build("first_hitting")
    assert (sampler.order, sampler.quota) == (Random(), One(Linear()))


def test_ancestral_in_one_stage_and_genmd4_draw_jointly() -> None:
    one = SAMPLERS.build({"type": "ancestral", "stages": 1, "schedule": "cosine"})
    assert one == MaskedSampler(Random(), Joint(Cosine()), steps=32)
    assert SAMPLERS.build("genmd4") == MaskedSampler(Random(), Joint(Linear()), steps=64)


def test_euler_is_ancestral_with_its_own_chance() -> None:
    assert SAMPLERS.build("euler") == MaskedSampler(Random(), Euler(Linear()), steps=64)


def test_remdm_is_ancestral_that_masks_again() -> None:
    remasks = {"cap": Cap(0.008), "rescale": Rescale(0.015), "conf": LowConfidence()}
    for name, remask in remasks.items():
        assert SAMPLERS.build(f"remdm_{name}") == MaskedSampler(Random(), Bernoulli(Linear()), remask, steps=64)
    loop = MaskedSampler(Random(), Bernoulli(Held(0.55, 0.05, 0.9)), Loop(0.02), steps=64)
    assert SAMPLERS.build("remdm_loop") == loop


def test_llada_is_greedy_confidence_with_even_counts() -> None:
    expected = MaskedSampler(Confidence(), Even(), steps=64, temperature=0)
    assert SAMPLERS.build("llada") == expected
    assert SAMPLERS.build({"type": "llada", "block_length": 32}).layout == Blocks(32)


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("entropy", Entropy(0.1, is_fading=False)),
        ("margin", Margin(0.1, is_fading=False)),
        ("confidence", Confidence(0.1, is_fading=False, is_log=False)),
    ],
)
def test_dream_has_three_measures_and_noise_that_stays(name: str, order: Entropy | Margin | Confidence) -> None:
    sampler = SAMPLERS.build({"type": "dream", "order": name, "alg_temp": 0.1})
    assert sampler == MaskedSampler(order, Share(Linear(), "floor", 1e-3), steps=64, temperature=0.2, top_p=0.95)


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


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_preset_says_what_it_is_and_takes_a_temperature_and_a_nucleus(name: str) -> None:
    assert SAMPLERS.summary(name)
    sampler = SAMPLERS.build({"type": name, "temperature": 0, "top_p": 0.8})
    assert (sampler.temperature, sampler.top_p) == (0, 0.8)
    assert ("steps" in SAMPLERS.arguments(name)) == (sampler.quota.n_steps(5, 99) == 5)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_preset_is_reachable_from_the_loop_itself(name: str) -> None:
    preset = SAMPLERS.build(name)
    spec = {"type": "masked", **{key: getattr(preset, key) for key in SAMPLERS.arguments("masked")}}
    x_1 = torch.full((2, 16), MASK)
    samples = [
        sampler(waves, x_1, Rng.per_sample([3, 4]), mask_id=MASK, grid=(4, 4))
        for sampler in (preset, SAMPLERS.build(spec))
    ]
    assert torch.equal(*samples)

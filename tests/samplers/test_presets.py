"""The published samplers are the settings they were published with."""

from __future__ import annotations

import pytest
import torch

from maskgen.rng import Rng
from maskgen.samplers import SAMPLERS, MaskedSampler
from maskgen.samplers.order import Confidence, Halton, Random
from maskgen.samplers.quota import Bernoulli, One, Scheduled
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


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_every_preset_says_what_it_is_and_takes_a_temperature(name: str) -> None:
    assert SAMPLERS.summary(name)
    sampler = SAMPLERS.build({"type": name, "temperature": 0})
    assert sampler.temperature == 0
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

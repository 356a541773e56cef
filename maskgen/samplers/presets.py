"""Published samplers, a row each: settings of the one loop."""

from __future__ import annotations

from maskgen.registry import Registry
from maskgen.samplers.layout import Full, Layout
from maskgen.samplers.masked import MaskedSampler
from maskgen.samplers.order import Confidence, Halton, Order, Random
from maskgen.samplers.quota import Bernoulli, One, Quota, Scheduled
from maskgen.samplers.remask import NoRemask, Remask
from maskgen.schedules import Arccos, Cosine, Linear, Schedule

SAMPLERS: Registry[MaskedSampler] = Registry("sampler", MaskedSampler)


@SAMPLERS.register("maskgit")
def maskgit(
    steps: int = 8, temperature: float = 1.0, choice_temperature: float = 4.5, schedule: Schedule = Cosine()
) -> MaskedSampler:
    """Most confident first, cosine counts (arXiv 2202.04200)."""
    return MaskedSampler(Confidence(choice_temperature), Scheduled(schedule), steps=steps, temperature=temperature)


@SAMPLERS.register("mage")
def mage(
    steps: int = 20, temperature: float = 1.0, choice_temperature: float = 6.0, schedule: Schedule = Cosine()
) -> MaskedSampler:
    """MaskGIT's loop with MAGE's settings (arXiv 2211.09117)."""
    return maskgit(steps, temperature, choice_temperature, schedule)


@SAMPLERS.register("halton")
def halton(
    steps: int = 32, temperature: float = 1.0, is_rolled: bool = False, schedule: Schedule = Arccos()
) -> MaskedSampler:
    """Low-discrepancy order, arccos counts, no confidence (arXiv 2503.17076)."""
    return MaskedSampler(Halton(is_rolled), Scheduled(schedule, "revealed"), steps=steps, temperature=temperature)


@SAMPLERS.register("ancestral")
def ancestral(steps: int = 32, temperature: float = 1.0, schedule: Schedule = Linear()) -> MaskedSampler:
    """The reverse process itself: every token by its own coin (MD4, MDLM)."""
    return MaskedSampler(Random(), Bernoulli(schedule), steps=steps, temperature=temperature)


@SAMPLERS.register("first_hitting")
def first_hitting(temperature: float = 1.0, schedule: Schedule = Linear()) -> MaskedSampler:
    """The reverse process without time error: one token a step, exactly L steps (arXiv 2409.02908)."""
    return MaskedSampler(Random(), One(schedule), temperature=temperature)


@SAMPLERS.register("masked")
def masked(
    order: Order = Confidence(),
    quota: Quota = Scheduled(),
    remask: Remask = NoRemask(),
    layout: Layout = Full(),
    steps: int = 8,
    temperature: float = 1.0,
) -> MaskedSampler:
    """The loop itself: any order x quota x remask x layout."""
    return MaskedSampler(order, quota, remask, layout, steps, temperature)

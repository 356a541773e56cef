"""Published samplers: settings of the masked decoding loop."""

from __future__ import annotations

from typing import Literal

from maskgen.core.predictions import Crossing
from maskgen.core.registry import Registry
from maskgen.samplers.gaussian import presets as field_presets  # noqa: F401 - a head's sampler is named as one of a Gaussian process
from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.masked.adaptive import EntropyBound, Factor, Threshold
from maskgen.samplers.masked.joint import Joint
from maskgen.samplers.masked.layout import Blocks, Full, Layout
from maskgen.samplers.masked.loop import DPM_HEAD, MaskedSampler
from maskgen.samplers.masked.order import Confidence, Entropy, Halton, Margin, Order, Random
from maskgen.samplers.masked.remask import Cap, Held, Loop, LowConfidence, NoRemask, Remask, Rescale
from maskgen.samplers.masked.unmasking import Bernoulli, Euler, Even, One, Scheduled, Share, Unmasking
from maskgen.schedules import Arccos, Cosine, Exponential, Linear, Schedule

SAMPLERS: Registry[MaskedSampler] = Registry("sampler", MaskedSampler, home="maskgen.samplers.masked:SAMPLERS")
DDPM_HEAD = FieldSampler("ddpm", 100, "linspace")


@SAMPLERS.register("maskgit")
def maskgit(
    steps: int = 8,
    temperature: float = 1.0,
    choice_temperature: float = 4.5,
    schedule: Schedule = Cosine(),
    top_p: float = 1.0,
) -> MaskedSampler:
    """Most confident first, cosine counts (arXiv 2202.04200).

    Counts are exact: the float32 cosine of the published code is one token off where cos(pi t / 2) L is whole.
    """
    order, unmasking = Confidence(choice_temperature), Scheduled(schedule)
    return MaskedSampler(order, unmasking, steps=steps, temperature=temperature, top_p=top_p)


@SAMPLERS.register("mage")
def mage(
    steps: int = 20,
    temperature: float = 1.0,
    choice_temperature: float = 6.0,
    schedule: Schedule = Cosine(),
    top_p: float = 1.0,
) -> MaskedSampler:
    """MaskGIT's loop with MAGE's settings (arXiv 2211.09117)."""
    return maskgit(steps, temperature, choice_temperature, schedule, top_p)


@SAMPLERS.register("amused")
def amused(
    steps: int = 12,
    temperature: float = 1.0,
    choice_temperature: float = 2.0,
    schedule: Schedule = Cosine(),
    top_p: float = 1.0,
) -> MaskedSampler:
    """MaskGIT with a choice temperature that falls linearly from 2 in the first step to 0 (aMUSEd, arXiv 2401.01808).

    Published inpainting: schedule `linear`. Published guidance: `{scale: 10}`.
    """
    order, unmasking = Confidence(choice_temperature, starts_full=True), Scheduled(schedule)
    return MaskedSampler(order, unmasking, steps=steps, temperature=temperature, top_p=top_p)


@SAMPLERS.register("mar")
def mar(
    steps: int = 64,
    temperature: float = 1.0,
    schedule: Schedule = Cosine(),
    head: FieldSampler = DDPM_HEAD,
    top_p: float = 1.0,
) -> MaskedSampler:
    """Random order, cosine counts, continuous tokens drawn in 100 DDPM steps each (MAR, arXiv 2406.11838).

    Published guidance: `{ramp: revealed, scale: 3}`.
    """
    order, unmasking = Random(), Scheduled(schedule)
    return MaskedSampler(order, unmasking, steps=steps, temperature=temperature, top_p=top_p, head=head)


@SAMPLERS.register("emigm")
def emigm(
    steps: int = 16,
    temperature: float = 1.0,
    schedule: Schedule = Exponential(),
    head: FieldSampler = DPM_HEAD,
    top_p: float = 1.0,
) -> MaskedSampler:
    """Independent unmasking on an exponential schedule, guidance interval by the time after the step (eMIGM).

    Times go evenly from 1 to 1e-5, and the last step reveals all (arXiv 2503.07197). Published guidance on ImageNet
    256 x 256 in 16 steps: `{scale: 4, interval: [0.1, 0.3]}`.
    """
    unmasking = Bernoulli(schedule, end=1e-5, uses_time_after=True)
    return MaskedSampler(Random(), unmasking, steps=steps, temperature=temperature, top_p=top_p, head=head)


@SAMPLERS.register("halton")
def halton(
    steps: int = 32,
    temperature: float = 1.0,
    is_rolled: bool = False,
    schedule: Schedule = Arccos(),
    top_p: float = 1.0,
) -> MaskedSampler:
    """Low-discrepancy order, arccos counts, no confidence (arXiv 2503.17076)."""
    order, unmasking = Halton(is_rolled), Scheduled(schedule, "revealed")
    return MaskedSampler(order, unmasking, steps=steps, temperature=temperature, top_p=top_p)


@SAMPLERS.register("ancestral")
def ancestral(
    steps: int = 32,
    temperature: float = 1.0,
    schedule: Schedule = Linear(),
    stages: Literal[1, 2] = 2,
    top_p: float = 1.0,
) -> MaskedSampler:
    """The reverse process: each token is revealed independently (MD4 arXiv 2406.04329, MDLM arXiv 2406.07524).

    Args:
        steps: T.
        temperature: of the tokens.
        schedule: alpha(t).
        stages: 2 chooses positions first and evaluates the network only where a token is revealed; 1 draws position and
            token at once.
        top_p: nucleus.
    """
    unmasking = Bernoulli(schedule) if stages == 2 else Joint(schedule)
    return MaskedSampler(Random(), unmasking, steps=steps, temperature=temperature, top_p=top_p)


@SAMPLERS.register("genmd4")
def genmd4(steps: int = 64, temperature: float = 1.0, top_p: float = 1.0) -> MaskedSampler:
    """Ancestral with the learned rate of each token (`with_exponents`; GenMD4, arXiv 2406.04329)."""
    return MaskedSampler(Random(), Joint(), steps=steps, temperature=temperature, top_p=top_p)


@SAMPLERS.register("euler")
def euler(
    steps: int = 64, temperature: float = 1.0, schedule: Schedule = Linear(), top_p: float = 1.0
) -> MaskedSampler:
    """Euler steps of discrete flow matching (arXiv 2407.15595)."""
    return MaskedSampler(Random(), Euler(schedule), steps=steps, temperature=temperature, top_p=top_p)


@SAMPLERS.register("first_hitting")
def first_hitting(temperature: float = 1.0, schedule: Schedule = Linear(), top_p: float = 1.0) -> MaskedSampler:
    """The reverse process without discretisation error: one token per step, L steps (arXiv 2409.02908)."""
    return MaskedSampler(Random(), One(schedule), temperature=temperature, top_p=top_p)


@SAMPLERS.register("remdm_cap")
def remdm_cap(
    steps: int = 64,
    temperature: float = 1.0,
    eta: float = 0.008,
    schedule: Schedule = Linear(),
    top_p: float = 1.0,
) -> MaskedSampler:
    """Ancestral that masks tokens again with chance at most eta a step: ReMDM-cap (arXiv 2503.00307)."""
    return _remdm(Cap(eta), schedule, steps, temperature, top_p)


@SAMPLERS.register("remdm_rescale")
def remdm_rescale(
    steps: int = 64,
    temperature: float = 1.0,
    eta: float = 0.015,
    schedule: Schedule = Linear(),
    top_p: float = 1.0,
) -> MaskedSampler:
    """Ancestral that masks tokens again with eta of the largest chance: ReMDM-rescale (arXiv 2503.00307)."""
    return _remdm(Rescale(eta), schedule, steps, temperature, top_p)


@SAMPLERS.register("remdm_conf")
def remdm_conf(
    steps: int = 64, temperature: float = 1.0, schedule: Schedule = Linear(), top_p: float = 1.0
) -> MaskedSampler:
    """Ancestral that masks tokens of low confidence again: ReMDM-conf (arXiv 2503.00307)."""
    return _remdm(LowConfidence(), schedule, steps, temperature, top_p)


@SAMPLERS.register("remdm_loop")
def remdm_loop(
    steps: int = 64,
    temperature: float = 1.0,
    eta: float = 0.02,
    t_on: float = 0.55,
    t_off: float = 0.05,
    alpha_on: float = 0.9,
    top_p: float = 1.0,
) -> MaskedSampler:
    """Ancestral that holds alpha at alpha_on while it masks and reveals tokens: ReMDM-loop (arXiv 2503.00307)."""
    return _remdm(Loop(eta), Held(t_on, t_off, alpha_on), steps, temperature, top_p)


@SAMPLERS.register("llada")
def llada(
    steps: int = 64, temperature: float = 0.0, block_length: int | None = None, top_p: float = 1.0
) -> MaskedSampler:
    """Most confident first, even counts, optionally in blocks from the prompt's end: LLaDA (arXiv 2502.09992)."""
    return MaskedSampler(
        Confidence(), Even(), layout=_blocks(block_length), steps=steps, temperature=temperature, top_p=top_p
    )


@SAMPLERS.register("dream")
def dream(
    steps: int = 64,
    temperature: float = 0.2,
    order: Literal["origin", "entropy", "margin", "confidence"] = "entropy",
    alg_temp: float = 0.0,
    top_p: float = 0.95,
    is_tempered: bool = True,
) -> MaskedSampler:
    """Most certain first by one of three measures, or random order: Dream (arXiv 2508.15487).

    Args:
        steps: T.
        temperature: of the tokens.
        order: the measure; `origin` reveals each token independently.
        alg_temp: noise of the choice; 0 takes the most certain.
        top_p: nucleus.
        is_tempered: rank by the probabilities after temperature and nucleus, as published; else before.
    """
    orders: dict[str, Order] = {
        "origin": Random(),
        "entropy": Entropy(alg_temp, is_fading=False, is_tempered=is_tempered),
        "margin": Margin(alg_temp, is_fading=False, is_tempered=is_tempered),
        "confidence": Confidence(alg_temp, is_fading=False, is_tempered=is_tempered, is_log=False),
    }
    unmasking: Unmasking = Bernoulli(end=1e-3) if order == "origin" else Share()
    return MaskedSampler(orders[order], unmasking, steps=steps, temperature=temperature, top_p=top_p)


@SAMPLERS.register("fast_dllm")
def fast_dllm(
    temperature: float = 0.0,
    threshold: float | None = None,
    factor: float | None = None,
    block_length: int | None = 32,
    top_p: float = 1.0,
) -> MaskedSampler:
    """All tokens of high confidence at once, by threshold (0.9) or by factor: Fast-dLLM (arXiv 2505.22618)."""
    if threshold is not None and factor is not None:
        raise ValueError(f"give a threshold or a factor, got threshold {threshold} and factor {factor}")
    unmasking = Threshold(0.9 if threshold is None else threshold) if factor is None else Factor(factor)
    return MaskedSampler(Confidence(), unmasking, layout=_blocks(block_length), temperature=temperature, top_p=top_p)


@SAMPLERS.register("entropy_bounded")
def entropy_bounded(temperature: float = 1.0, gamma: float = 0.1, top_p: float = 1.0) -> MaskedSampler:
    """Lowest entropy first, tokens of at most gamma nats in all per step: EB-Sampler (arXiv 2505.24857)."""
    return MaskedSampler(Entropy(), EntropyBound(gamma), temperature=temperature, top_p=top_p)


@SAMPLERS.register("autoregressive")
def autoregressive(temperature: float = 1.0, top_p: float = 1.0) -> MaskedSampler:
    """Left to right, one token per step: blocks of one (BD3-LM, arXiv 2503.09573)."""
    return MaskedSampler(Random(), One(), layout=Blocks(1, "row"), temperature=temperature, top_p=top_p)


@SAMPLERS.register("masked", renamed={"quota": "unmasking"})
def masked(
    order: Order = Confidence(),
    unmasking: Unmasking = Scheduled(),
    remask: Remask = NoRemask(),
    layout: Layout = Full(),
    steps: int = 8,
    temperature: float = 1.0,
    top_p: float = 1.0,
    head: FieldSampler = DPM_HEAD,
    crossing: Crossing = "include",
    top_k: int = 0,
    lookahead: int | None = None,
) -> MaskedSampler:
    """The loop itself: any order x unmasking x remask x layout; continuous tokens are drawn by `head`."""
    return MaskedSampler(order, unmasking, remask, layout, steps, temperature, top_p, head, crossing, top_k, lookahead)


def _remdm(remask: Remask, schedule: Schedule, steps: int, temperature: float, top_p: float) -> MaskedSampler:
    """The nucleus of the published code excludes the token that crosses top_p."""
    return MaskedSampler(
        Random(),
        Bernoulli(schedule),
        remask,
        steps=steps,
        temperature=temperature,
        top_p=top_p,
        crossing="exclude",
    )


def _blocks(block_length: int | None) -> Layout:
    return Full() if block_length is None else Blocks(block_length)

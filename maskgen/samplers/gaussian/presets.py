"""Samplers of Gaussian processes by name: settings of `FieldSampler`."""

from __future__ import annotations

from typing import Literal

from maskgen.core.registry import Registry
from maskgen.samplers.gaussian.sampler import FieldSampler, Spacing

FIELD_SAMPLERS: Registry[FieldSampler] = Registry(
    "sampler", FieldSampler, home="maskgen.samplers.gaussian:FIELD_SAMPLERS"
)


@FIELD_SAMPLERS.register("ddpm")
def ddpm(
    steps: int = 250,
    variance: Literal["small", "large"] = "small",
    spacing: Spacing = "auto",
    clip: float = 0.0,
) -> FieldSampler:
    """Ancestral, with the learned variance if the network has one (arXiv 2006.11239; DiT, MDT: 250 steps)."""
    return FieldSampler("ddpm", steps, spacing, variance=variance, clip=clip)


@FIELD_SAMPLERS.register("ddim")
def ddim(steps: int = 50, eta: float = 0.0, spacing: Spacing = "auto", clip: float = 0.0) -> FieldSampler:
    """Implicit, deterministic at eta 0 (arXiv 2010.02502)."""
    return FieldSampler("ddim", steps, spacing, eta=eta, clip=clip)


@FIELD_SAMPLERS.register("dpm")
def dpm(steps: int = 20, order: int = 2, spacing: Spacing = "auto", clip: float = 0.0) -> FieldSampler:
    """DPM-Solver++, multistep: few steps (arXiv 2211.01095)."""
    return FieldSampler("dpm", steps, spacing, order=order, clip=clip)


@FIELD_SAMPLERS.register("dpm_single")
def dpm_single(
    steps: int = 8, order: int = 3, sigma_min: float = 0.01, sigma_max: float = 80.0, clip: float = 0.0
) -> FieldSampler:
    """DPM-Solver++, singlestep, evenly in log-SNR: `steps` evaluations (arXiv 2211.01095; eMIGM's head: 8 or 14)."""
    return FieldSampler("dpm_single", steps, "logsnr", order=order, sigma_min=sigma_min, sigma_max=sigma_max, clip=clip)


@FIELD_SAMPLERS.register("heun")
def heun(
    steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0, clip: float = 0.0
) -> FieldSampler:
    """EDM's second-order steps, 2 steps - 1 evaluations (arXiv 2206.00364, algorithm 1)."""
    return FieldSampler("heun", steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho, clip=clip)


@FIELD_SAMPLERS.register("euler")
def field_euler(steps: int = 50, spacing: Spacing = "auto", clip: float = 0.0) -> FieldSampler:
    """First-order steps in sigma (EDM), or along straight lines for a process of straight lines (flow)."""
    return FieldSampler("euler", steps, spacing, clip=clip)


@FIELD_SAMPLERS.register("flow_euler")
def flow_euler(steps: int = 50, spacing: Spacing = "auto", clip: float = 0.0) -> FieldSampler:
    """First-order steps along straight lines, for any process (rectified flow, arXiv 2209.03003)."""
    return FieldSampler("flow_euler", steps, spacing, clip=clip)

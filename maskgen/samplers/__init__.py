"""Sampling: masked decoding of tokens, solvers of Gaussian processes, guidance; every preset is a function."""

from maskgen.samplers.gaussian.presets import FIELD_SAMPLERS, ddim, ddpm, dpm, flow_euler, heun
from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.loop import MaskedSampler, with_exponents
from maskgen.samplers.masked.order import ORDERS, Order, Proposal
from maskgen.samplers.masked.presets import (
    SAMPLERS,
    ancestral,
    autoregressive,
    dream,
    emigm,
    entropy_bounded,
    euler,
    fast_dllm,
    first_hitting,
    genmd4,
    halton,
    llada,
    mage,
    mar,
    maskgit,
    remdm_cap,
    remdm_conf,
    remdm_loop,
    remdm_rescale,
)

__all__ = [
    "FIELD_SAMPLERS",
    "ORDERS",
    "SAMPLERS",
    "FieldSampler",
    "Guidance",
    "MaskedSampler",
    "Order",
    "Proposal",
    "ancestral",
    "autoregressive",
    "ddim",
    "ddpm",
    "dpm",
    "dream",
    "emigm",
    "entropy_bounded",
    "euler",
    "fast_dllm",
    "first_hitting",
    "flow_euler",
    "genmd4",
    "halton",
    "heun",
    "llada",
    "mage",
    "mar",
    "maskgit",
    "remdm_cap",
    "remdm_conf",
    "remdm_loop",
    "remdm_rescale",
    "with_exponents",
]

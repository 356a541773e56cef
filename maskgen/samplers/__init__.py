"""Sampling: masked decoding of tokens, and solvers of Gaussian processes.

Each published sampler is a function of its settings, `maskgit(steps=12)`; `MaskedSampler` and `FieldSampler` take any
combination. The names that recipes use are in the registries `SAMPLERS` (masked tokens) and `FIELD_SAMPLERS`
(Gaussian processes); `euler` names one in each, the latter is `field_euler` here.
"""

from maskgen.samplers.gaussian.presets import FIELD_SAMPLERS, ddim, ddpm, dpm, dpm_single, field_euler, flow_euler, heun
from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.guidance import Guidance
from maskgen.samplers.masked.loop import MaskedSampler, with_exponents
from maskgen.samplers.masked.order import ORDERS, Order, Proposal
from maskgen.samplers.masked.presets import (
    SAMPLERS,
    amused,
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
from maskgen.samplers.masked.source import Decoded, Forced, Sampled, TokenSource
from maskgen.samplers.masked.text_presets import masked_lm, p2

__all__ = [
    "FIELD_SAMPLERS",
    "ORDERS",
    "SAMPLERS",
    "Decoded",
    "FieldSampler",
    "Forced",
    "Guidance",
    "MaskedSampler",
    "Order",
    "Proposal",
    "Sampled",
    "TokenSource",
    "amused",
    "ancestral",
    "autoregressive",
    "ddim",
    "ddpm",
    "dpm",
    "dpm_single",
    "dream",
    "emigm",
    "entropy_bounded",
    "euler",
    "fast_dllm",
    "field_euler",
    "first_hitting",
    "flow_euler",
    "genmd4",
    "halton",
    "heun",
    "llada",
    "mage",
    "mar",
    "masked_lm",
    "maskgit",
    "p2",
    "remdm_cap",
    "remdm_conf",
    "remdm_loop",
    "remdm_rescale",
    "with_exponents",
]

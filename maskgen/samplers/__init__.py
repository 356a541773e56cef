"""Sampling: masked decoding of tokens, and solvers of Gaussian processes."""

from maskgen.samplers.gaussian.presets import FIELD_SAMPLERS
from maskgen.samplers.gaussian.sampler import FieldSampler
from maskgen.samplers.masked.loop import MaskedSampler, with_exponents
from maskgen.samplers.masked.presets import SAMPLERS

__all__ = ["FIELD_SAMPLERS", "SAMPLERS", "FieldSampler", "MaskedSampler", "with_exponents"]

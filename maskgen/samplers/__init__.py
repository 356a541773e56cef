"""Sampling: masked decoding of tokens, and solvers of Gaussian processes."""

from maskgen.samplers.field import FieldSampler
from maskgen.samplers.field_presets import FIELD_SAMPLERS
from maskgen.samplers.masked import MaskedSampler, with_exponents
from maskgen.samplers.presets import SAMPLERS

__all__ = ["FIELD_SAMPLERS", "SAMPLERS", "FieldSampler", "MaskedSampler", "with_exponents"]

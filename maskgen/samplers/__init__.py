"""Masked decoding."""

from maskgen.samplers.masked import MaskedSampler, with_exponents
from maskgen.samplers.presets import SAMPLERS

__all__ = ["SAMPLERS", "MaskedSampler", "with_exponents"]

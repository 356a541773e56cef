"""Masked decoding."""

from maskgen.samplers.masked import MaskedSampler
from maskgen.samplers.presets import SAMPLERS

__all__ = ["SAMPLERS", "MaskedSampler"]

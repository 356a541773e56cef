"""Schedules alpha(t), of masking and of noise."""

from maskgen.schedules.base import SCHEDULES, Rounding, Schedule
from maskgen.schedules.noise import Betas, LogNormal, Rectified
from maskgen.schedules.visibility import (
    Arccos,
    Cosine,
    CosineAlpha,
    CosineSquared,
    Exponential,
    Fixed,
    Linear,
    Log,
    LogExp,
    Polynomial,
    Power,
    TruncatedNormal,
)

__all__ = [
    "SCHEDULES",
    "Arccos",
    "Betas",
    "Cosine",
    "CosineAlpha",
    "CosineSquared",
    "Exponential",
    "Fixed",
    "Linear",
    "Log",
    "LogExp",
    "LogNormal",
    "Polynomial",
    "Power",
    "Rectified",
    "Rounding",
    "Schedule",
    "TruncatedNormal",
]

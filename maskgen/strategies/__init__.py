"""Mask strategies: which tokens are masked first."""

from maskgen.strategies.base import STRATEGIES, Guide, MaskStrategy, first, spread_evenly
from maskgen.strategies.guided import Attention, Hard
from maskgen.strategies.oblivious import Blocks, Color, Grid, Random, Units

__all__ = [
    "STRATEGIES",
    "Attention",
    "Blocks",
    "Color",
    "Grid",
    "Guide",
    "Hard",
    "MaskStrategy",
    "Random",
    "Units",
    "first",
    "spread_evenly",
]

"""Mask strategies: which tokens are masked first."""

from maskgen.strategies.base import STRATEGIES, Guide, MaskStrategy, first, spread_evenly
from maskgen.strategies.oblivious import Blocks, Color, Grid, Random

__all__ = ["STRATEGIES", "Blocks", "Color", "Grid", "Guide", "MaskStrategy", "Random", "first", "spread_evenly"]

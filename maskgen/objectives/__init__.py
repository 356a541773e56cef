"""Training objectives: a model, a batch and an Rng -> a loss."""

from maskgen.objectives.base import OBJECTIVES, Objective, draw_times
from maskgen.objectives.blockwise import BlockTokens, NextToken
from maskgen.objectives.denoising import Denoising
from maskgen.objectives.images import Classification, Reconstruction, shift_images
from maskgen.objectives.masked import MaskedTokens
from maskgen.objectives.state_dependent import StateDependentTokens
from maskgen.objectives.token_diffusion import TokenDiffusion

__all__ = [
    "OBJECTIVES",
    "BlockTokens",
    "Classification",
    "Denoising",
    "MaskedTokens",
    "NextToken",
    "Objective",
    "Reconstruction",
    "StateDependentTokens",
    "TokenDiffusion",
    "draw_times",
    "shift_images",
]

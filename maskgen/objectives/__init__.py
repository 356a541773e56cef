"""Training objectives: a model, a batch and an Rng -> a loss."""

from maskgen.objectives.base import (
    OBJECTIVES,
    Objective,
    ObjectiveTraits,
    draw_times,
    takes_progress,
    traits_of_objective,
)
from maskgen.objectives.blockwise import BlockTokens, NextToken
from maskgen.objectives.denoising import Denoising
from maskgen.objectives.images import Classification, Reconstruction, shift_images
from maskgen.objectives.masked import MaskedTokens
from maskgen.objectives.masked_denoising import MaskedDenoising
from maskgen.objectives.projection import ProjectedRegression
from maskgen.objectives.regression import MaskedRegression
from maskgen.objectives.state_dependent import StateDependentTokens
from maskgen.objectives.token_diffusion import TokenDiffusion

__all__ = [
    "OBJECTIVES",
    "BlockTokens",
    "Classification",
    "Denoising",
    "MaskedDenoising",
    "MaskedRegression",
    "MaskedTokens",
    "NextToken",
    "Objective",
    "ObjectiveTraits",
    "ProjectedRegression",
    "Reconstruction",
    "StateDependentTokens",
    "TokenDiffusion",
    "draw_times",
    "shift_images",
    "takes_progress",
    "traits_of_objective",
]

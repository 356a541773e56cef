"""Targets of masked autoencoders: what the prediction of a masked token is compared with, the key `target`."""

from maskgen.objectives.targets.base import OWN_WIDTH, TARGETS, TargetSpec, TokenTarget
from maskgen.objectives.targets.copies import EmaTeacher, frozen_copy
from maskgen.objectives.targets.pixels import Normalised, Pixels
from maskgen.objectives.targets.source import FrozenNetwork, FrozenTokenizer

__all__ = [
    "OWN_WIDTH",
    "TARGETS",
    "EmaTeacher",
    "FrozenNetwork",
    "FrozenTokenizer",
    "Normalised",
    "Pixels",
    "TargetSpec",
    "TokenTarget",
    "frozen_copy",
]

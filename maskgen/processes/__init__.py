"""Forward processes: tokens that become [MASK], continuous tokens that drown in noise."""

from maskgen.processes.base import PROCESSES, Process
from maskgen.processes.gaussian import Gaussian, Scalings
from maskgen.processes.masking import Absorbing, Masking, StateDependent, is_mask, put_masks

__all__ = [
    "PROCESSES",
    "Absorbing",
    "Gaussian",
    "Masking",
    "Process",
    "Scalings",
    "StateDependent",
    "is_mask",
    "put_masks",
]

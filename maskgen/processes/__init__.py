"""Forward processes: masking of tokens, Gaussian noise on continuous tokens."""

from maskgen.processes.base import PROCESSES, Process
from maskgen.processes.gaussian import Gaussian, Scalings
from maskgen.processes.masking import Absorbing, Masking, StateDependent, is_mask, put_masks
from maskgen.processes.stream_denoiser import StreamDenoiser

__all__ = [
    "PROCESSES",
    "Absorbing",
    "Gaussian",
    "Masking",
    "Process",
    "Scalings",
    "StateDependent",
    "StreamDenoiser",
    "is_mask",
    "put_masks",
]

"""MDTv2: the official network, both passes of its loss and its guidance beside ours.

    python benchmarks/parity/mdtv2.py --public DIR    # a copy of sail-sg/MDT

Outputs of all tokens, outputs with tokens dropped (side-interpolater), power-cosine guidance of three channels, and
the sum of both passes' losses with equal noise and equal dropped tokens, and guided samples of four steps.
"""

from __future__ import annotations

import torch
from harness import run
from mdt_passes import DROPPED, parity_of

SPREAD = 0.37
"""Draw of the ratio of dropped tokens within its range."""

PARITY = parity_of("mdtv2", "MDTv2", 1, keep_ratio=1 - DROPPED - 0.2 * SPREAD, draws=[torch.tensor([SPREAD])])

if __name__ == "__main__":
    run(PARITY, __doc__)
